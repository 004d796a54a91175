"""The checks before a merge: what they need, and what they find where configs say less."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dualign.checkpoints.checkpoint import Checkpoint
from dualign.errors import MergeError
from dualign.merging.config_diff import config_differences
from dualign.merging.merge import prepare
from dualign.merging.mergekit.load import load
from tests.checkpoints.folders import CONFIG, TOKENS, write_json, write_model

TEXT = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"


def prepared(folder: Path, more: str = "") -> dict[str, dict[str, object]]:
    (folder / "merge.yml").write_text(TEXT + more)
    return dict(prepare(load(folder / "merge.yml"), seed=0).resolved_conflicts)


def test_a_union_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """Nor do configs of which one leaves out the defaults that the other spells out."""
    write_model(tmp_path / "a", 1)
    more = {"head_dim": 4, "num_key_value_heads": 2, "attention_bias": False, "mlp_bias": False}
    vocabulary = {"type": "WordLevel", "vocab": TOKENS, "unk_token": "<pad>"}
    whole = {"version": "1.0", "model": vocabulary, "added_tokens": []}
    write_json(tmp_path / "a" / "tokenizer.json", whole)
    write_model(tmp_path / "b", 2, **more)
    new = {"id": 5, "content": "<new>", "special": True, "single_word": False, "lstrip": False}
    new |= {"rstrip": False, "normalized": False}
    write_json(tmp_path / "b" / "tokenizer.json", {**whole, "added_tokens": [new]})
    (tmp_path / "merge.yml").write_text(TEXT + "tokenizer_source: union\n")
    code = (
        "import sys; from dualign.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "merge",
        str(tmp_path / "merge.yml"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    tokens = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    assert [token["content"] for token in tokens] == ["<new>"]


@pytest.mark.parametrize(
    ("left_out", "spelt", "differs"),
    [
        ({}, {"head_dim": 4}, False),
        ({}, {"head_dim": 8}, True),
        ({}, {"attention_bias": True}, True),
        ({}, {"hidden_act": "silu"}, False),
        ({}, {"hidden_act": "gelu"}, True),
        ({"rope_theta": None}, {"rope_theta": 10000.0}, False),
        ({"rope_theta": None}, {"rope_theta": 5e5}, True),
    ],
)
def test_what_one_config_leaves_out_has_the_value_of_its_architecture(
    tmp_path: Path, left_out: dict, spelt: dict, differs: bool
) -> None:
    a, b = write_model(tmp_path / "a", 1, **left_out), write_model(tmp_path / "b", 2, **spelt)
    found = config_differences(Checkpoint(a), Checkpoint(b), slices=False)
    assert bool(found) is differs, found


def test_a_decision_names_every_model_and_its_value(tmp_path: Path) -> None:
    for seed, (name, theta) in enumerate((("a", 1e4), ("b", 5e5), ("c", 1e6))):
        write_model(tmp_path / name, seed, rope_theta=theta)
    text = TEXT.replace("{model: b}", "{model: b}, {model: c}")
    (tmp_path / "merge.yml").write_text(text)
    with pytest.raises(MergeError, match="2 things keep"):
        prepare(load(tmp_path / "merge.yml"), seed=0)
    (tmp_path / "merge.yml").write_text(text + "config_from: b\n")
    found = prepare(load(tmp_path / "merge.yml"), seed=0).resolved_conflicts["rope_parameters"]
    values = {
        Path(name).name: entry["rope_theta"]
        for name, entry in found.items()
        if name != "taken_from"
    }
    assert values == {"a": 1e4, "b": 5e5, "c": 1e6}
    assert Path(found["taken_from"]).name == "b"


def test_ids_of_the_same_token_are_no_difference_once_they_are_aligned(tmp_path: Path) -> None:
    write_model(tmp_path / "a", 1)
    order = {"<pad>": 2, "<s>": 0, "</s>": 1, "a": 4, "b": 3}
    write_model(tmp_path / "b", 2, tokenizer=order, eos_token_id=1)
    with pytest.raises(MergeError, match=r"eos_token_id: 2 in .*1 in"):
        prepared(tmp_path)
    assert set(prepared(tmp_path, "tokenizer_source: a\n")) == {"vocabulary"}
    assert CONFIG["eos_token_id"] == 2
