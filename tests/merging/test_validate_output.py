"""What is written is read back: settings that aren't those of the plan are found before publication."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dualign.errors import MergeError
from dualign.merging.merge import PreparedMerge, prepare, write
from dualign.merging.mergekit.load import load
from dualign.merging.validate_output import validate_output
from tests.checkpoints.folders import change_json, write_file, write_json, write_model

TEXT = """
merge_method: linear
parameters: {weight: 1}
models: [{model: a}, {model: b}]
config_from: b
"""
ROPE = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
END = {"eos_token_id": [2, 3], "temperature": 0.6}


@pytest.fixture
def written(tmp_path: Path) -> tuple[PreparedMerge, Path]:
    write_model(tmp_path / "a", 1)
    write_json(write_model(tmp_path / "b", 2, **ROPE) / "generation_config.json", END)
    (tmp_path / "merge.yml").write_text(TEXT)
    prepared = prepare(load(tmp_path / "merge.yml"), seed=0)
    (tmp_path / "out").mkdir()
    write(prepared, tmp_path / "out", seed=0)
    return prepared, tmp_path / "out"


def again(prepared: PreparedMerge, out: Path) -> None:
    validate_output(out, prepared.weights, template=prepared.template, mapping=None)


def test_rope_generation_settings_and_template_are_the_donors(
    written: tuple[PreparedMerge, Path], tmp_path: Path
) -> None:
    prepared, out = written
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((tmp_path / "b" / "config.json").read_text())
    assert json.loads((out / "generation_config.json").read_text()) == END
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert prepared.resolved_conflicts["rope_parameters"]["taken_from"] == str(tmp_path / "b")
    again(prepared, out)


def without_norm(out: Path) -> None:
    write_file(out / "model.safetensors", {"model.norm.weight": np.ones(8, np.float32)})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda out: change_json(out / "config.json", rope_theta=1e4), "config.json has rope_theta: 10000.0, expected 500000.0"),
        (lambda out: change_json(out / "config.json", vocab_size=13), "config.json has vocab_size: 13, expected 12"),
        (lambda out: change_json(out / "config.json", new=1), "config.json has new: 1, expected None"),
        (lambda out: change_json(out / "generation_config.json", eos_token_id=[2, 12]), "generation_config.json has eos_token_id: 12, expected 'an id below 12'"),
        (without_norm, r"model.embed_tokens.weight is None, expected \(12, 8\)"),
    ],
)  # fmt: skip
def test_what_is_not_as_planned_is_found(
    written: tuple[PreparedMerge, Path], harm: Callable[[Path], object], message: str
) -> None:
    prepared, out = written
    harm(out)
    with pytest.raises(MergeError, match=f"{message}; please report this"):
        again(prepared, out)


def test_another_template_than_the_chosen_one_is_found(written: tuple[PreparedMerge, Path]) -> None:
    prepared, out = written
    with pytest.raises(MergeError, match="another chat template was written"):
        validate_output(out, prepared.weights, template="mine", mapping=None)
