"""Figures of a stage in a tracker: names by mode, one run over pauses, and training that outlives the tracker."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dualign import engine
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from dualign.training.trackers import _Run, _Tracker

pytest.importorskip("tensorboard")
pytest.importorskip("trackio")
TRAIN = {
    "max_steps": 4,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def recipe(
    folder: Path, tiny: Path, rows: Path, *trackers: str, kinds: Sequence[str] = ("sft", "apo")
) -> Path:
    """SFT with held-out rows, and APO on its adapter."""

    def stage(name: str, kind: str, file: str, model: str) -> dict:
        data = {"sources": [{"path": str(rows / file)}], "max_tokens": 128, "packing": "none"}
        return {
            "name": name,
            "kind": kind,
            "model": model,
            "lora": {"r": 2},
            "data": {**data, "validation_rows": 8},
            "train": {**TRAIN, "report_to": list(trackers)},
        }

    stages = [
        stage("sft", "sft", "train.jsonl", str(tiny)),
        stage("apo", "preference", "pairs.jsonl", "stage:sft"),
    ]
    stages = [stage for stage in stages if stage["name"] in kinds]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(folder / "sums"), "stages": stages}))
    return path


def run(path: Path, *overrides: str) -> Path:
    engine.run(load_recipe(path, overrides), say=lambda _: None)
    return path.parent / "sums"


def logged(run_dir: Path) -> dict[str, dict[int, float]]:
    """Return name -> step -> value of log.jsonl, as transformers names them for trackers."""
    figures: dict[str, dict[int, float]] = {}
    for line in (run_dir / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for key, value in entry.items():
            name = f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"
            figures.setdefault(name, {})[entry["step"]] = value
    return figures


def require_figures(run_dir: Path, *names: str) -> None:
    """Require each figure of log.jsonl once in TensorBoard's files, under these names."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    expected = logged(run_dir)
    assert set(names) <= set(events.Tags()["scalars"])
    for name in names:
        values = {event.step: event.value for event in events.Scalars(name)}
        assert len(events.Scalars(name)) == len(values), "each step once"
        assert set(values) - set(expected[name]) <= {3}, "what a pause measures for itself"
        values = {step: values[step] for step in expected[name]}
        assert values == pytest.approx(expected[name], rel=1e-6), name


def require_in_trackio(run_dir: Path, *names: str) -> None:
    """Require each figure of log.jsonl in the folder that the tests give trackio, under these names."""
    from trackio.sqlite_storage import SQLiteStorage

    project = read_run(run_dir)["metrics"]["trackers"]["trackio"]["project"]
    assert Path(os.environ["TRACKIO_DIR"], f"{project}.db").is_file()
    record = read_run(run_dir)["metrics"]["trackers"]["trackio"]
    assert "failed" not in record
    rows = SQLiteStorage.get_logs(record["project"], record["run"])
    expected = logged(run_dir)
    for name in names:
        values = {row["train/global_step"]: row[name] for row in rows if name in row}
        values = {step: values[step] for step in expected[name]}
        assert values == pytest.approx(expected[name], rel=1e-6), name


def test_trackers_have_the_figures_of_each_mode_over_a_pause(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, tiny, rows, "tensorboard", "trackio", kinds=["sft"])
    run(path, "sft.pause_at_step=3")
    sft = run(path) / "sft"
    names = ("train/loss", "train/loss/think", "train/loss/no_think", "eval/loss/no_think")
    require_figures(sft, *names)
    require_in_trackio(sft, *names)
    record = read_run(sft)["metrics"]["trackers"]["tensorboard"]
    assert record["project"] == "sums" and record["run"].startswith("sft-")


class _Broken(TrainerCallback):
    """A tracker without network."""

    def __init__(self) -> None:
        self.heard = 0

    def on_log(self, *_: object, **__: object) -> None:
        self.heard += 1
        raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_told_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = _Broken()
    about = _Run(project="sums", id="sft-1", name="sft-1", folder=tmp_path)
    tracker = _Tracker("wandb", callback, about)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    for step in (7, 8):
        tracker.tell("on_log", arguments, TrainerState(global_step=step), TrainerControl(), logs={})
    assert callback.heard == 1
    assert tracker.record()["failed"] == "at step 7: ConnectionError: no route to host"
    assert caplog.text.count("training goes on, and log.jsonl will have all of them") == 1


@pytest.mark.slow
def test_each_stage_is_a_run_of_its_own(tiny: Path, rows: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny, rows, "trackio", "tensorboard")
    run(path, "sft.pause_at_step=3")
    out = run(path)
    names = "train/rewards/margins/think", "eval/rewards/accuracies/no_think"
    require_figures(out / "apo", *names)
    require_in_trackio(out / "apo", *names)
    require_in_trackio(out / "sft", "train/loss/no_think", "eval/loss/think")
