"""Where a model's files are: one answer to where an adapter's base is, for all who ask."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.weights import find_base, open_weights
from dualign.doctor.saved_model import read_saved_model
from dualign.errors import CheckpointError
from dualign.model_ref import adapter_base
from dualign.models.source import resolve_model


def adapter(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": base, "revision": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_relative_base_is_the_same_folder_for_training_merging_and_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    here = model(tmp_path / "models" / "base")
    lora = adapter(tmp_path / "runs" / "sft", "models/base")
    caplog.set_level(logging.WARNING)

    def places() -> set[Path]:
        found = {
            Path(resolve_model(lora).base),
            find_base(lora, read_json(lora / "adapter_config.json")),
            read_saved_model(lora)[0].base or Path(),
        }
        return {place.resolve() for place in found}

    assert places() == {here}
    assert len(caplog.records) == 1, "said once"
    assert str(here) in caplog.text
    beside = model(lora / "models" / "base")
    assert places() == {beside}, "the adapter's folder goes first"
    assert len(caplog.records) == 1


def test_a_base_is_any_kind_of_model(tmp_path: Path, embedded: Path) -> None:
    lora = adapter(tmp_path / "lora", "embedded:smollm2-135m-instruct")
    assert resolve_model(lora).base == str(embedded)
    hub = adapter(tmp_path / "hub", "owner/base@v1")
    assert (resolve_model(hub).base, resolve_model(hub).revision) == ("owner/base", "v1")


def test_an_adapter_without_a_base_says_where_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="base_model_name_or_path is empty"):
        adapter_base(tmp_path, {})


def test_the_tokenizer_is_the_bases_where_the_adapter_has_none(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    lora = adapter(tmp_path / "lora", str(base))
    assert resolve_model(lora).tokenizer == str(base)
    (lora / "tokenizer_config.json").write_text("{}")
    assert resolve_model(lora).tokenizer == str(lora)


@pytest.mark.parametrize("read", [resolve_model, open_weights])
def test_folders_of_a_run_say_where_its_models_are(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    run = tmp_path / "run"
    for name, kind in (("data", "script"), ("test", "eval")):
        (run / name).mkdir(parents=True)
        (run / name / "run.json").write_text(json.dumps({"name": name, "kind": kind}))
    with pytest.raises(CheckpointError, match=r"whole run.* the run has no model yet"):
        read(run)
    for number, name in enumerate(("sft", "merged")):
        record = {"name": name, "kind": "merge", "started": f"2026-03-0{number + 1}"}
        (model(run / name) / "run.json").write_text(json.dumps(record))
    models = re.escape(f"models of this run: {run / 'sft'}, {run / 'merged'}")
    with pytest.raises(CheckpointError, match=rf"run: is the folder of a whole run.*; {models}$"):
        read(run)
    with pytest.raises(CheckpointError, match=rf"what stage test \(eval\) left.*; {models}$"):
        read(run / "test")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for reference, message in (
        (str(tmp_path / "gone"), "no such folder"),
        (str(tmp_path), "neither config.json nor adapter_config.json"),
        ("owner/base+owner/lora", "only merges, folds and exports"),
        ("nf4:owner/base", "only merges, folds and exports"),
    ):
        with pytest.raises(CheckpointError, match=message):
            resolve_model(reference)
