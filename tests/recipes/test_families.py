"""The recipes of model families: what they train on, the memory of each size, and the road of each in small."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dualign.cli.main import main
from dualign.cost.memory import estimate
from dualign.cost.model_shape import ModelShape
from dualign.cost.stage_shape import training_shape
from dualign.data.prepare import prepare_sft
from dualign.models.data_request import load_data_request
from dualign.recipe import Recipe, load_recipe
from tests.recipes.families import (
    FAMILIES,
    Family,
    Size,
    save_dimensions,
    save_tiny,
    save_tokenizer,
)

RECIPES = Path(__file__).parents[2] / "recipes/models"
README = (RECIPES / "README.md").read_text()
CARD = 24 * 2**30
SMALL = (
    "dtype=float32",
    "quantization=null",
    "lora.r=2",
    "data.max_tokens=1024",
    "train.bf16=false",
    "train.use_cpu=true",
    "train.max_steps=2",
    "train.gradient_accumulation_steps=1",
    "train.per_device_train_batch_size=2",
    "train.save_strategy='no'",
)


def small(family: Family, folder: Path) -> list[str]:
    """Overrides with which a family's recipe runs here, on a tiny model of its architecture."""
    model = save_tiny(family, folder / "model")
    both = [f"{stage}.{key}" for stage in ("sft", "apo") for key in SMALL]
    limits = ["eval.rows=2", "eval.max_new_tokens=8", "eval.max_new_tokens_no_think=8"]
    return [f"output_dir={folder / 'out'}", f"sft.model={model}", *both, *limits]


def loaded(family: Family, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{family.recipe}.yaml", overrides)


def peak(family: Family, size: Size, folder: Path, *overrides: str) -> float:
    """The peak of both training stages with rows of the longest length that they take, in bytes."""
    config = json.loads((save_dimensions(family, size, folder) / "config.json").read_text())
    shape = ModelShape.from_config(config)
    stages = loaded(family, f"sft.model={folder}", *overrides).stages[:2]
    return max(
        estimate(shape, training_shape(stage.config, longest=stage.config.data.max_tokens)).total
        for stage in stages
    )


SIZES = [(family, size) for family in FAMILIES for size in family.sizes]


@pytest.mark.parametrize(("family", "size"), SIZES, ids=[size.name for _, size in SIZES])
def test_each_size_fits_one_card_as_its_page_says(
    tmp_path: Path, family: Family, size: Size
) -> None:
    nf4 = peak(family, size, tmp_path)
    bf16 = peak(family, size, tmp_path, "sft.quantization=null", "apo.quantization=null")
    assert nf4 < CARD
    assert f"| {size.name} | {nf4 / 1e9:.1f} | {bf16 / 1e9:.1f} |" in README


def check_road(family: Family, folder: Path, *more: str) -> None:
    overrides = [*small(family, folder), *more]
    path = str(RECIPES / f"{family.recipe}.yaml")
    assert main(["plan", path, *overrides]) == 0
    assert main(["run", path, *overrides]) == 0
    out = folder / "out"
    for stage in ("sft", "apo"):
        rows = json.loads((out / stage / "run.json").read_text())["rows"]
        assert rows["dropped"] == {} and rows["kept"] == 24
        assert {entry["mode"] for entry in rows["by"]} == {"think", "no_think"}
    tasks = json.loads((out / "eval/metrics.json").read_text())["tasks"]
    assert {mode: entry["n"] for mode, entry in tasks["questions"].items()} == {
        "think": 2,
        "no_think": 2,
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.recipe)
def test_the_road_of_a_family_runs_in_small(tmp_path: Path, family: Family) -> None:
    check_road(family, tmp_path)


@pytest.mark.slow
def test_the_road_runs_over_a_base_in_four_bits(tmp_path: Path) -> None:
    check_road(FAMILIES[0], tmp_path, "sft.quantization=nf4", "apo.quantization=nf4")


TRACE = "<think>\nThe notebooks cost 3 * 4 = 12 dollars. The change is 20 - 12 = 8 dollars.\n</think>\n\n"
QUICK = ("gemma3", "mistral")
LEARNED: dict[str, tuple[str, str]] = {
    "qwen3": ("<|im_start|>assistant\n", "<think>\n\n</think>\n\n"),
    "smollm2": ("/think<|im_end|>", "/no_think<|im_end|>"),
    "smollm3": ("Reasoning Mode: /think\n", "Reasoning Mode: /no_think\n"),
    "llama3": (
        "Today Date: 26 Jul 2024\n\ndetailed thinking on<",
        "detailed thinking off<|eot_id|>",
    ),
    "gemma3": ("<bos><start_of_turn>user\ndetailed thinking on\n\n", "detailed thinking off\n\n"),
    "mistral": ("<s>[INST] detailed thinking on\n\n", "detailed thinking off\n\n"),
    "phi4-mini": ("<|system|>detailed thinking on<|end|>", "detailed thinking off<|end|>"),
}
"""What stands in the prompt of each mode."""


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family.recipe in QUICK else (pytest.mark.slow,))
        for family in FAMILIES
    ],
    ids=lambda family: family.recipe,
)
def test_what_a_family_learns_of_a_row_in_each_mode(tmp_path: Path, family: Family) -> None:
    save_dimensions(family, family.sizes[0], tmp_path)
    save_tokenizer(family, tmp_path)
    stage = loaded(family, f"sft.model={tmp_path}").stages[0].config
    data = replace(stage.data, packing="none", cache=False)
    request = load_data_request(
        data, str(tmp_path), stage.template, stage.template_kwargs, stage.switch, seed=0
    )
    made, tokenizer = prepare_sft(request), request.tokenizer
    assert made.rows["dropped"] == {}
    end = family.specials[-1]
    assert tokenizer.eos_token == end and request.template.document_marks[1] == (
        end
        if family.recipe == "mistral"
        else family.specials[0]
        if end != "<end_of_turn>"
        else "<eos>"
    )
    for mode, shown in zip(("think", "no_think"), LEARNED[family.recipe], strict=True):
        texts = [
            (
                tokenizer.decode(row["input_ids"]),
                tokenizer.decode([i for i in row["labels"] if i >= 0]),
            )
            for row in made.train
            if made.groups[row["doc_groups"][0]][0] == mode
        ]
        row, learned = next(pair for pair in texts if "3 notebooks cost 4" in pair[0])
        assert shown in row.removesuffix(learned)
        trace = TRACE if mode == "think" else ""
        # SmolLM2's prompt, which is dualign's, opens the block itself.
        trace = trace.removeprefix("<think>\n") if family.recipe == "smollm2" else trace
        assert learned.lstrip(" ") == f"{trace}Ana gets 8 dollars back.{end}"
