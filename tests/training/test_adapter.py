"""Settings of an adapter that can't be meant are refused where the recipe is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import ConfigError
from dualign.fingerprint import Digests, fingerprint
from dualign.recipe import load_recipe
from dualign.training import preflight

WRONG = {
    "random start": ({"init_lora_weights": False}, "false starts from random changes"),
    "eva": ({"init_lora_weights": "eva"}, "eva needs a pass over the data before training"),
    "misspelled": ({"init_lora_weights": "pisa"}, "unknown value 'pisa' (did you mean 'pissa'?"),
    "pattern": ({"init_lora_weights": "pissa_niter_N"}, "unknown value 'pissa_niter_N'"),
    "odd rank": (
        {"init_lora_weights": "orthogonal", "rank_pattern": {"q_proj": 3}},
        "orthogonal needs even ranks, found 3",
    ),
    "pissa and dora": ({"init_lora_weights": "pissa", "use_dora": True}, "choose one"),
    "pissa and biases": ({"init_lora_weights": "olora", "bias": "all"}, "can't be added up"),
    "layers of an expression": (
        {"layers_to_transform": [1], "target_modules": ".*_proj"},
        "write them into the regular expression",
    ),
    "negative layer": ({"layers_to_transform": [-1]}, "expected numbers from 0, found -1"),
    "layer without a list": ({"layers_to_transform": 0}, "expected a list, found 0"),
    "rank 0": ({"rank_pattern": {"q_proj": 0}}, "q_proj: expected 1 or more, found 0"),
    "expression": ({"alpha_pattern": {"q_(": 2}}, "'q_(' is not a regular expression"),
    "exclusion": ({"exclude_modules": "q_("}, "not a regular expression"),
    "rate": ({"loraplus_lr_ratio": 0}, "expected more than 0, found 0"),
}


def recipe(folder: Path, lora: dict[str, Any], **keys: Any) -> Path:
    data = {"sources": [{"path": "rows.jsonl"}], "packing": "none"}
    stage = {"name": "stage", "kind": "sft", "model": "somebody/model", "data": data, "lora": lora}
    (folder / "rows.jsonl").write_text("{}\n")
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": "out", "stages": [{**stage, **keys}]}))
    return path


@pytest.mark.parametrize(("lora", "expected"), WRONG.values(), ids=WRONG)
def test_a_setting_that_cannot_be_meant_is_refused(
    tmp_path: Path, lora: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, lora), [])
    assert expected in str(caught.value)
    assert "lora." in str(caught.value)


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ({"init_lora_weights": "pissa"}, "pissa needs the base's exact weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: needs float32 weights"),
        ({"use_dora": True}, "DoRA needs the base's exact weights"),
    ],
)
def test_a_base_in_4_bits_cannot_give_it(
    tmp_path: Path, lora: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_recipe(recipe(tmp_path, lora, quantization="nf4"), [])


def test_trained_biases_leave_no_reference_to_switch_back_to(tmp_path: Path) -> None:
    bias = {"bias": "all"}
    with pytest.raises(ConfigError, match="no longer the start model"):
        load_recipe(recipe(tmp_path, bias, kind="preference"), [])
    load_recipe(recipe(tmp_path, bias, kind="preference", reference="cached"), [])


@pytest.mark.parametrize(
    "lora", [{"modules_to_save": ["lm_head"]}, {"init_lora_weights": "orthogonal"}, {"bias": "all"}]
)
def test_16_bit_weights_would_round_it_away(tmp_path: Path, lora: dict[str, Any]) -> None:
    stage = load_recipe(recipe(tmp_path, lora, dtype="bfloat16"), []).stages[0].config
    key = f"lora.{next(iter(lora))}"
    messages = [message for name, message in preflight.issues(stage) if name == key]
    assert messages == [
        "most of it is rounded away in bfloat16 weights: remove dtype, or set float32"
    ]


def test_the_fingerprint_says_what_is_set_and_nothing_of_defaults(tmp_path: Path) -> None:
    def hashed(lora: dict[str, Any]) -> str:
        entry = load_recipe(recipe(tmp_path, lora), []).stages[0]
        return fingerprint(entry, {}, Digests())

    plain = hashed({"r": 4})
    assert hashed({"r": 4, "init_lora_weights": True, "bias": "none", "rank_pattern": {}}) == plain
    changes: list[dict[str, Any]] = [
        {"exclude_modules": ["q_proj"]},
        {"layers_to_transform": [0]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"bias": "all"},
        {"loraplus_lr_ratio": 2},
    ]
    hashes = {hashed({"r": 4, **change}) for change in changes}
    assert len(hashes - {plain}) == len(changes)
