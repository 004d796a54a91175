"""A stage that pauses at a step and goes on later ends with the bits of a stage that never paused."""

import json
from pathlib import Path

import pytest

import dualign
from dualign import engine
from dualign.config import parse_value
from dualign.errors import ConfigError
from dualign.progress import read_progress
from dualign.recipe import load_recipe
from dualign.rundir import paused_model, read_paused, read_run, work_folder
from dualign.storage.runs import read_runs

TRAIN = {
    "max_steps": 6,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path, rows: Path) -> Path:
    """SFT with dropout, APO on its adapter, and a stage after them."""

    def stage(name: str, kind: str, file: str, **keys: object) -> dict:
        data = {
            "sources": [{"path": str(rows / file)}],
            "validation_rows": 4,
            "max_tokens": 128,
            "packing": "none",
        }
        lora = {"r": 4, "lora_dropout": 0.2}
        return {"name": name, "kind": kind, "lora": lora, "data": data, "train": TRAIN, **keys}

    apo = {**TRAIN, "disable_dropout": False, "eval_strategy": "steps", "eval_steps": 2}
    (tmp_path / "after.py").write_text("")
    stages = [
        stage("sft", "sft", "train.jsonl", model=str(tiny)),
        stage("apo", "preference", "pairs.jsonl", model="stage:sft", train=apo),
        {"name": "after", "kind": "script", "script": "after.py"},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(tmp_path / "calm"), "seed": 3, "stages": stages}))
    return path


def run(recipe: Path, *overrides: str) -> list[str]:
    lines: list[str] = []
    engine.run(load_recipe(recipe, overrides), say=lines.append)
    return lines


def require_progress(out: Path) -> None:
    """Require that a folder with a paused stage says how far it is, and has its log."""
    progress = read_progress(work_folder(out / "sft"))
    assert progress is not None and (progress.done, progress.total) == (3, 6)
    assert {"loss", "loss/think", "learning_rate"} <= set(progress.logged())
    assert {"Tokens a second", "Memory, peak"} <= set(progress.measured())
    log = (work_folder(out / "sft") / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in log]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3]
    assert "train_runtime" in entries[-1], "what came after the pause's measurement"
    assert not any("eval_loss" in entry for entry in entries), "which stays out of the log"
    (stage,) = read_runs(out)[0].stages
    assert stage.figure.startswith("stopped at step 3 of 6, ") and "loss/think" in stage.figure


def test_paused_stages_end_bit_identical(recipe: Path) -> None:
    run(recipe)
    calm, rough = recipe.parent / "calm", recipe.parent / "rough"
    out = f"output_dir={rough}"
    lines = run(recipe, out, "sft.pause_at_step=3")
    assert "sft (sft): paused at step 3" in lines[-1] and not (rough / "sft").exists()
    paused = read_paused(rough / "sft")
    assert paused is not None and paused.step == 3 and paused.metrics["eval_loss"] > 0
    model = paused_model(work_folder(rough / "sft"), 3)
    assert (model / "adapter_model.safetensors").is_file(), "as of this step, to be looked at"
    require_progress(rough)
    again = run(recipe, out, "sft.pause_at_step=3")
    assert "paused at step 3" in again[-1], "it's there already"
    done = dualign.run(load_recipe(recipe, [out, "apo.pause_at_step=4"]))
    assert list(done) == ["sft"], "no report: the other stages aren't there"
    page = (rough / "report.html").read_text()
    assert "apo paused at step 4" in page and "apo: loss by step" in page
    assert 'id="live"' not in page, "it doesn't load itself again"
    logged = [json.loads(line) for line in (calm / "apo" / "log.jsonl").read_text().splitlines()]
    evaluated = next(row for row in logged if row["step"] == 4 and "eval_loss" in row)
    paused = read_paused(rough / "apo")
    assert paused is not None and paused.metrics["eval_loss"] == evaluated["eval_loss"]
    assert run(recipe, out)[-1].startswith("[3/3] after (script): finished")
    for stage in ("sft", "apo"):
        weights = [folder / stage / "adapter_model.safetensors" for folder in (calm, rough)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), stage
        assert not (rough / stage / "paused.json").exists()
        assert not (rough / stage / "progress.json").exists()
        records = [read_run(folder / stage) for folder in (calm, rough)]
        assert records[0]["fingerprint"] == records[1]["fingerprint"]
        assert records[1]["resumed"] >= 1


def test_a_pause_at_the_last_step_is_none_and_one_after_it_refused(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = r"stage apo: pause_at_step: the stage has 6 steps, found 7"
    with pytest.raises(ConfigError, match=words):
        run(recipe, "sft.pause_at_step=6", "apo.pause_at_step=7")
    # 40 pairs, 4 of them held out, 36 a batch: one step, which is known once the rows are.
    by_epochs = ["apo.train.max_steps=-1", "apo.train.num_train_epochs=1"]
    by_epochs += ["apo.train.per_device_train_batch_size=36", "apo.pause_at_step=7"]
    with caplog.at_level("WARNING"):
        assert "finished" in run(recipe, "sft.pause_at_step=6", *by_epochs)[-1]
    assert "pause_at_step 7 lies after the last step, 1: no pause" in caplog.text


def test_an_earlier_pause_goes_back(recipe: Path) -> None:
    """Metrics of step 2 can't be measured with the weights of step 4."""
    run(recipe, "sft.pause_at_step=4")
    run(recipe, "sft.pause_at_step=2")
    paused = read_paused(recipe.parent / "calm" / "sft")
    assert paused is not None and paused.step == 2


@pytest.mark.parametrize("value", [0, -3, "soon"])
def test_a_pause_that_is_no_step_is_refused(recipe: Path, value: object) -> None:
    assert parse_value(str(value)) == value
    with pytest.raises(ConfigError, match=r"stages\[0\]\.pause_at_step: expected"):
        load_recipe(recipe, [f"sft.pause_at_step={value}"])
