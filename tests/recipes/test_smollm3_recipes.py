"""The SmolLM3 recipes against the published figures, and their stand-ins against the real thing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, SmolLM3Config
from transformers.utils.chat_template_utils import render_jinja_template

import dualign
from dualign.preference.config import PreferenceStage
from dualign.recipe import load_recipe, references
from dualign.sft.config import SFTStage

RECIPES = Path(__file__).parents[2] / "recipes"
SMOLLM3 = RECIPES / "smollm3"
STAGES = ["mid", "sft", "apo", "merge"]
ADAPTERS = ["sft-lora-48gb", "sft-qlora-24gb", "apo-lora-48gb", "apo-qlora-24gb"]
LAUNCHERS = ["zero2", "zero3", "fsdp2"]


@dataclass(frozen=True)
class Split:
    """A line of the dataset card's table; `million_tokens` is unweighted."""

    name: str
    weight: float
    rows: int
    million_tokens: float


# Dataset card of smoltalk2 (rows, tokens) and the published SFT recipe (weights).
SFT_SPLITS = [
    Split("smoltalk_smollm3_everyday_conversations_no_think", 1, 2260, 0.63),
    Split("smoltalk_smollm3_systemchats_30k_no_think", 1, 33997, 22.06),
    Split("tulu_3_sft_personas_instruction_following_no_think", 1, 29970, 13.83),
    Split("hermes_function_calling_v1_no_think", 1, 8961, 11.38),
    Split("smoltalk_smollm3_smol_magpie_ultra_no_think", 0.5, 406843, 619.05),
    Split("smoltalk_multilingual_8languages_lang_5_no_think", 1, 254047, 166.79),
    Split("table_gpt_no_think", 1, 13203, 11.49),
    Split("OpenHermes_2.5_no_think", 0.5, 384900, 158.23),
    Split("OpenThoughts3_1.2M_no_think_no_think", 0.4, 435193, 379.82),
    Split("Mixture_of_Thoughts_science_no_think", 1, 86110, 37.51),
    Split("smoltalk_smollm3_explore_instruct_rewriting_no_think", 1, 30391, 4.63),
    Split("smoltalk_smollm3_smol_rewrite_no_think", 1, 53262, 20.34),
    Split("smoltalk_smollm3_smol_summarize_no_think", 1, 96061, 51.82),
    Split("LongAlign_64k_context_lang_annotated_lang_6_no_think", 1, 6249, 95.78),
    Split("xlam_traces_no_think", 1, 59962, 29.40),
    Split("multi_turn_reasoning_if_think", 1, 28217, 97.62),
    Split("smoltalk_everyday_convs_reasoning_Qwen3_32B_think", 1, 2057, 3.17),
    Split("smoltalk_systemchats_Qwen3_32B_think", 1, 27436, 29.84),
    Split("smolagents_toolcalling_traces_think", 1, 9079, 63.81),
    Split("s1k_1.1_think", 1, 835, 8.25),
    Split("LongAlign_64k_Qwen3_32B_yarn_131k_think", 1, 7526, 136.21),
    Split("aya_dataset_Qwen3_32B_think", 1, 15222, 18.92),
    Split("smoltalk_multilingual8_Qwen3_32B_think", 0.3, 244736, 551.97),
    Split("OpenThoughts3_1.2M_think", 0.02, 1133524, 16734),
    Split("table_gpt_Qwen3_32B_think", 1, 13201, 25.92),
]
PREFERENCE_ROWS = {
    "llama_3.1_tulu_3_8b_preference_mixture_no_think": 230501,
    "tulu_3_8b_pref_mix_Qwen3_32B_Qwen3_0.6B_think": 216385,
}


def read(name: str, folder: Path = SMOLLM3) -> dict[str, Any]:
    return yaml.safe_load((folder / f"{name}.yaml").read_text())


def weights(recipe: dict[str, Any]) -> dict[str, float]:
    return {source["split"]: source["weight"] for source in recipe["data"]["sources"]}


def modes(recipe: dict[str, Any]) -> dict[str, str]:
    return {source["split"]: source["mode"] for source in recipe["data"]["sources"]}


def rows_per_step(recipe: dict[str, Any], processes: int) -> int:
    train = recipe["train"]
    return processes * train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]


def header(path: Path) -> str:
    """The comment at the head of a file."""
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def test_sft_mixes_the_25_published_splits_with_their_weights() -> None:
    recipe = read("sft")
    assert len(recipe["data"]["sources"]) == 25
    assert weights(recipe) == {split.name: split.weight for split in SFT_SPLITS}


def test_sft_modes_are_those_of_the_split_names() -> None:
    found = modes(read("sft"))
    assert sorted(found.values()).count("no_think") == 15
    assert all(
        mode == ("no_think" if name.endswith("_no_think") else "think")
        for name, mode in found.items()
    )


@pytest.mark.parametrize(
    ("mode", "tokens", "rows"), [("no_think", 1.006e9, 1_244_421), ("think", 0.884e9, 199_663)]
)
def test_sft_mixture_has_the_published_tokens_and_rows_in_each_mode(
    mode: str, tokens: float, rows: int
) -> None:
    recipe = read("sft")
    weight, of_mode = weights(recipe), modes(recipe)
    splits = [split for split in SFT_SPLITS if of_mode[split.name] == mode]
    assert sum(
        split.million_tokens * weight[split.name] for split in splits
    ) * 1e6 == pytest.approx(tokens, abs=5e5)
    assert sum(int(split.rows * weight[split.name]) for split in splits) == rows


def test_apo_keeps_the_published_number_of_pairs() -> None:
    weight = weights(read("apo"))
    assert {name: int(rows * weight[name]) for name, rows in PREFERENCE_ROWS.items()} == {
        "llama_3.1_tulu_3_8b_preference_mixture_no_think": 115_250,
        "tulu_3_8b_pref_mix_Qwen3_32B_Qwen3_0.6B_think": 54_096,
    }


@pytest.mark.parametrize(
    ("name", "rows", "tokens"), [("mid", 128, 32768), ("sft", 128, 65536), ("apo", 32, 24576)]
)
def test_eight_gpus_make_the_published_global_batch(name: str, rows: int, tokens: int) -> None:
    recipe = read(name)
    processes = read("zero3", RECIPES / "accelerate")["num_processes"]
    assert rows_per_step(recipe, processes) == rows
    assert recipe["data"]["max_tokens"] == tokens


def test_sft_takes_225_full_steps_an_epoch() -> None:
    recipe = read("sft")
    tokens = sum(split.million_tokens * split.weight for split in SFT_SPLITS) * 1e6
    assert round(tokens / (128 * recipe["data"]["max_tokens"])) == 225


@pytest.mark.parametrize(
    ("name", "learning_rate", "warmup", "epochs"),
    [("mid", 2e-5, 0.03, 5), ("sft", 2e-5, 0.03, 5), ("apo", 1e-6, 0.1, 1)],
)
def test_schedule_is_the_published_one(
    name: str, learning_rate: float, warmup: float, epochs: int
) -> None:
    train = read(name)["train"]
    assert train["learning_rate"] == learning_rate
    assert (train["lr_scheduler_type"], train["lr_scheduler_kwargs"]) == (
        "cosine_with_min_lr",
        {"min_lr_rate": 0.1},
    )
    assert train["warmup_steps"] == warmup
    assert train["max_grad_norm"] == 0.2
    assert train["num_train_epochs"] == epochs


def test_mid_training_is_bare_chatml_without_a_mask_in_wrapped_rows() -> None:
    recipe = read("mid")
    assert (recipe["template"], recipe["data"]["supervise"], recipe["data"]["packing"]) == (
        "chatml",
        "all",
        "wrapped",
    )
    assert weights(recipe) == {
        "Llama_Nemotron_Post_Training_Dataset_reasoning_r1": 1,
        "OpenThoughts3_1.2M": 1,
    }


def test_sft_learns_assistant_turns_in_the_training_format() -> None:
    recipe = read("sft")
    assert (recipe["template"], recipe["data"]["supervise"]) == ("smollm3-training", "assistant")
    assert recipe["template_kwargs"]["date"] == "01 July 2025"


def test_apo_is_apo_zero_against_a_frozen_copy() -> None:
    recipe = read("apo")
    assert (recipe["train"]["loss_type"], recipe["train"]["beta"]) == ("apo_zero", 0.05)
    assert (recipe["reference"], recipe["template"]) == ("copy", "tokenizer")


def test_each_stage_starts_from_the_published_checkpoint_before_it() -> None:
    start = {
        name: (read(name)["model"], read(name).get("revision")) for name in ("mid", "sft", "apo")
    }
    assert start == {
        "mid": ("HuggingFaceTB/SmolLM3-3B-Base", None),
        "sft": ("HuggingFaceTB/SmolLM3-3B-checkpoints", "it-mid-training"),
        "apo": ("HuggingFaceTB/SmolLM3-3B-checkpoints", "it-SFT"),
    }


def test_merge_is_nine_tenths_to_one() -> None:
    recipe = read("merge")
    assert [model["weight"] for model in recipe["models"]] == [0.9, 0.1]
    assert (recipe["method"], recipe["dtype"]) == ("linear", "bfloat16")


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_recipes_keep_the_proportions_of_the_mixture(name: str) -> None:
    full = weights(read(name.split("-")[0]))
    small = weights(read(name))
    shares = {small[split] / full[split] for split in full}
    assert small.keys() == full.keys()
    assert max(shares) == pytest.approx(min(shares))


@pytest.mark.parametrize("name", ["sft-lora-48gb", "sft-qlora-24gb"])
def test_adapter_recipes_see_as_many_tokens_a_step_on_either_card(name: str) -> None:
    recipe = read(name)
    assert rows_per_step(recipe, processes=1) * recipe["data"]["max_tokens"] == 262_144


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_recipes_fit_together(name: str) -> None:
    recipe = read(name)
    assert ("quantization" in recipe) == ("qlora" in name)
    if name.startswith("apo"):
        assert recipe["model"] == f"runs/smollm3/{name.replace('apo', 'sft')}"
        assert recipe["lora"] == read(name.replace("apo", "sft"))["lora"]


@pytest.mark.parametrize("name", [*STAGES, *ADAPTERS])
def test_stage_recipes_load(name: str) -> None:
    recipe = load_recipe(SMOLLM3 / f"{name}.yaml", [])
    assert [entry.name for entry in recipe.stages] == [name]
    assert recipe.output_dir == Path("runs/smollm3")


def test_pipeline_chains_every_stage_to_the_ones_before_it() -> None:
    recipe = load_recipe(SMOLLM3 / "pipeline.yaml", [])
    chain = {entry.name: list(references(entry.config)) for entry in recipe.stages}
    assert chain == {
        "mid": [],
        "sft": ["stage:mid"],
        "apo": ["stage:sft"],
        "apo-second": ["stage:sft"],
        "soup": ["stage:apo", "stage:apo-second"],
        "merge": ["stage:soup", "stage:mid"],
    }
    assert recipe.stage("apo").seed != recipe.stage("apo-second").seed


def test_pipeline_stages_are_the_stage_recipes_but_for_where_they_start() -> None:
    recipe = load_recipe(SMOLLM3 / "pipeline.yaml", [])
    for name in ("mid", "sft", "apo"):
        alone = load_recipe(SMOLLM3 / f"{name}.yaml", []).stage(name).config
        chained = recipe.stage(name).config
        assert isinstance(alone, SFTStage | PreferenceStage)
        assert (chained.data, chained.train, chained.template) == (
            alone.data,
            alone.train,
            alone.template,
        )
        assert chained.revision is None
        assert chained.launch == str(RECIPES / "accelerate" / "zero3.yaml")


@pytest.mark.parametrize("path", sorted(SMOLLM3.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_header_says_hardware_time_and_the_command(path: Path) -> None:
    text = header(path)
    assert all(f"# {word}  " in text for word in ("Hardware", "Time    ", "Command "))
    commands = text.split("Command")[1]
    assert f"recipes/smollm3/{path.name}" in commands
    named = [word for word in commands.split() if word.startswith("recipes/")]
    assert all((RECIPES.parent / word).is_file() for word in named)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_use_eight_gpus_and_leave_the_recipe_its_accumulation(name: str) -> None:
    config = read(name, RECIPES / "accelerate")
    assert (config["num_processes"], config["mixed_precision"], config["use_cpu"]) == (
        8,
        "bf16",
        False,
    )
    sharding = config.get("deepspeed_config") or config["fsdp_config"]
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & sharding.keys()


def test_full_size_smollm3_has_no_positions_in_every_fourth_layer() -> None:
    config = SmolLM3Config()
    assert [i for i, rope in enumerate(config.no_rope_layers) if not rope] == [
        3,
        7,
        11,
        15,
        19,
        23,
        27,
        31,
        35,
    ]


def test_tiny_model_has_the_architecture(tiny_smollm3: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_smollm3)
    assert [bool(layer.self_attn.use_rope) for layer in model.model.layers] == [
        True,
        True,
        True,
        False,
    ]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.rope_parameters["rope_theta"] == 5_000_000


def test_tiny_model_learns_from_a_rendered_row(
    tiny_smollm3: Path, smoltalk2: dict[tuple[str, str], Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_smollm3)
    model = AutoModelForCausalLM.from_pretrained(tiny_smollm3)
    row = pq.read_table(smoltalk2["SFT", "think"]).to_pylist()[0]
    ids = torch.tensor([tokenizer(render_row(row))["input_ids"]])
    assert ids.shape[1] < 512
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("word", ["<|im_start|>", "<|im_end|>", "<think>", "</think>"])
def test_tiny_tokenizer_keeps_control_words_whole(tiny_smollm3: Path, word: str) -> None:
    assert (
        len(
            AutoTokenizer.from_pretrained(tiny_smollm3)(word, add_special_tokens=False)["input_ids"]
        )
        == 1
    )


COLUMNS = {
    "Mid": {"messages", "source"},
    "SFT": {"messages", "chat_template_kwargs", "source"},
    "Preference": {"chosen", "rejected", "prompt", "chat_template_kwargs", "source"},
}


def test_stand_in_rows_have_the_columns_of_the_dataset(
    smoltalk2: dict[tuple[str, str], Path],
) -> None:
    for (config, mode), path in smoltalk2.items():
        table = pq.read_table(path)
        assert set(table.column_names) == COLUMNS[config]
        if "chat_template_kwargs" in COLUMNS[config]:
            kwargs = [row["chat_template_kwargs"] for row in table.to_pylist()]
            assert set(kwargs[0]) == {
                "custom_instructions",
                "enable_thinking",
                "python_tools",
                "xml_tools",
            }
            assert all(row["enable_thinking"] == (mode == "think") for row in kwargs)


def render_row(row: dict[str, Any]) -> str:
    """A row with its kwargs in the training format, as TRL would render it."""
    text = (
        Path(dualign.__file__).parent / "data" / "templates" / "smollm3-training.jinja"
    ).read_text()
    rendered, _ = render_jinja_template(
        [row["messages"]], chat_template=text, **row["chat_template_kwargs"]
    )
    return rendered[0]


def test_kwargs_of_a_row_reach_the_text(smoltalk2: dict[tuple[str, str], Path]) -> None:
    no_think = [render_row(row) for row in pq.read_table(smoltalk2["SFT", "no_think"]).to_pylist()]
    think = [render_row(row) for row in pq.read_table(smoltalk2["SFT", "think"]).to_pylist()]
    assert (
        sum(
            "## Custom Instructions\n\nYou are a vampire technologist\n\n" in text
            for text in no_think
        )
        == 3
    )
    assert sum('<tools>\n{"name": "weather"' in text for text in no_think) == 3
    assert (
        sum("### Python Tools\n\ndef square(x: int) -> int: ...\n\n" in text for text in think) == 4
    )
    assert all("Reasoning Mode: /no_think\n" in text for text in no_think)
    assert all("Reasoning Mode: /think\n" in text for text in think)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mid", "Mid"),
        ("sft", "SFT"),
        ("apo", "Preference"),
        ("sft-qlora-24gb", "SFT"),
        ("apo-lora-48gb", "Preference"),
    ],
)
def test_recipe_can_be_shrunk_by_overrides(
    name: str, config: str, small_overrides: Callable[..., list[str]], tiny_smollm3: Path
) -> None:
    overrides = small_overrides(config, lora_rank=4 if "lora" in name else None)
    stage = load_recipe(SMOLLM3 / f"{name}.yaml", overrides).stage(name).config
    full = load_recipe(SMOLLM3 / f"{name}.yaml", []).stage(name).config
    assert stage.model == str(tiny_smollm3)
    assert all(Path(source.path).is_file() for source in stage.data.sources)
    assert (stage.template, stage.data.packing, stage.data.supervise) == (
        full.template,
        full.data.packing,
        full.data.supervise,
    )
    assert stage.train["learning_rate"] == full.train["learning_rate"]
