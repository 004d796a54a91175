"""Each SmolLM3 recipe run for two steps on a tiny SmolLM3 with rows of smoltalk2's columns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign import engine
from dualign.recipe import load_recipe

SMOLLM3 = Path(__file__).parents[2] / "recipes" / "smollm3"
Overrides = Callable[..., list[str]]


def run_recipe(name: str, overrides: list[str]) -> Path:
    """The run directory of a stage recipe."""
    recipe = load_recipe(SMOLLM3 / f"{name}.yaml", overrides)
    (folder,) = engine.run(recipe, say=lambda _: None)
    return folder


def run_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sft_run(small_overrides: Overrides) -> Path:
    return run_recipe("sft", small_overrides("SFT"))


def test_mid_training_learns_every_token_and_ends_turns(small_overrides: Overrides) -> None:
    folder = run_recipe("mid", small_overrides("Mid"))
    rows = run_json(folder)["rows"]
    assert (rows["in"], rows["kept"]) == (12, 12)
    assert all(part["tokens"] == part["supervised_tokens"] for part in rows["by"])
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"


def test_sft_keeps_rows_of_both_modes_and_masks_the_prompts(sft_run: Path) -> None:
    rows = run_json(sft_run)["rows"]
    assert (rows["in"], rows["kept"]) == (24, 24)
    assert {part["mode"] for part in rows["by"]} == {"think", "no_think"}
    assert all(0 < part["supervised_tokens"] < part["tokens"] / 2 for part in rows["by"])
    model = AutoModelForCausalLM.from_pretrained(sft_run)
    assert model.config.no_rope_layers == [1, 1, 1, 0]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_apo_after_sft_starts_at_a_loss_of_one(small_overrides: Overrides, sft_run: Path) -> None:
    apo = run_recipe("apo", small_overrides("Preference", model=sft_run))
    assert log(apo)[0]["loss"] == pytest.approx(1.0, abs=1e-4)
    assert run_json(apo)["rows"]["kept"] == 24
    template = (apo / "chat_template.jinja").read_text()
    assert template == (sft_run / "chat_template.jinja").read_text()


def test_merge_is_nine_tenths_of_one_and_a_tenth_of_the_other(
    sft_run: Path, tiny_smollm3: Path, tmp_path: Path
) -> None:
    models = f"models=[{{model: {sft_run}, weight: 0.9}}, {{model: {tiny_smollm3}, weight: 0.1}}]"
    settings = [f"output_dir={tmp_path / 'merged'}", f"config_from={sft_run}", "dtype=float32"]
    merged = run_recipe("merge", [models, *settings])
    states = [
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (merged, sft_run, tiny_smollm3)
    ]
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, 0.9 * states[1][name] + 0.1 * states[2][name], atol=1e-6)


@pytest.mark.parametrize("card", ["lora-48gb", "qlora-24gb"])
def test_adapter_recipes_chain_into_one_adapter(card: str, small_overrides: Overrides) -> None:
    sft = run_recipe(f"sft-{card}", small_overrides("SFT", lora_rank=4))
    apo = run_recipe(f"apo-{card}", small_overrides("Preference", model=sft, lora_rank=4))
    assert log(apo)[0]["loss"] == pytest.approx(1.0, abs=1e-4)
    assert json.loads((apo / "adapter_config.json").read_text())["r"] == 8
    assert run_json(apo)["checks"]["reload_max_logit_difference"] < 1e-4
