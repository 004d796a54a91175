"""A grid of four with halving, killed in the middle and called again: what it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

import dualign
from dualign import engine
from dualign.cli.main import main
from dualign.recipe import load_recipe
from dualign.rundir import read_run
from tests import processes
from tests.experiments.conftest import write_experiment

GRID = {"apo.train.learning_rate": [1e30, 1e-3, 2e-3, 1e-2]}  # the first one isn't finite for long


class Halved:
    """An experiment that was killed and has ended."""

    def __init__(self, file: Path, record: dict[str, Any], lines: list[str]) -> None:
        self.file, self.record, self.lines = file, record, lines
        self.out = file.parent / "out"

    def runs(self, state: str) -> list[Path]:
        entries = [entry for entry in self.record["runs"] if entry["state"] == state]
        return [Path(entry["folder"]) for entry in entries]


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory, learnt: Path, task_file: Path) -> Halved:
    """After kill -9 when a run has reached its rung, the same command again."""
    folder = tmp_path_factory.mktemp("halved")
    halving = {"stage": "apo", "rungs": [2]}
    file = write_experiment(folder, learnt, task_file, grid=GRID, halving=halving)
    process = processes.Fork("experiment", str(file), log=folder / "killed.log")
    rungs = folder / "out" / "rungs.json"
    processes.wait_until(lambda: rungs.exists() or not process.runs())
    assert process.runs(), process.log.read_text()
    process.kill()
    lines: list[str] = []
    return Halved(file, dualign.experiment(file, say=lines.append), lines)


def test_half_of_the_settings_go_on_and_a_failure_ends_nothing(halved: Halved) -> None:
    entries = halved.record["runs"]
    assert [e["state"] for e in entries] == ["failed", "stopped at 2", "finished", "finished"]
    assert "rung 2: 2 of 4 settings go on by apo.margin: " in "\n".join(halved.lines)
    assert "not a number" in entries[0]["failure"]
    margins = [dict(entry["curve"])[2] for entry in entries[1:]]
    assert margins[0] == min(margins) == entries[1]["held_out"]["margin"]
    stopped = halved.runs("stopped at 2")[0]
    assert not (stopped / "apo").exists() and (stopped / ".apo.partial").exists()


def test_a_survivor_has_the_bits_of_a_run_alone(halved: Halved, tmp_path: Path) -> None:
    survivor = halved.runs("finished")[0]
    entry = next(e for e in halved.record["runs"] if e["folder"] == str(survivor))
    overrides = [f"{key}={value}" for key, value in entry["point"].items()]
    alone = load_recipe(halved.file.parent / "recipe.yaml", [*overrides, f"output_dir={tmp_path}"])
    for stage in ("data", "apo"):
        engine.run(alone, only=stage, say=lambda line: None)
    name = "adapter_model.safetensors"
    assert (tmp_path / "apo" / name).read_bytes() == (survivor / "apo" / name).read_bytes()
    assert read_run(survivor / "apo")["resumed"] >= 1


def test_a_stage_that_runs_share_is_done_once(halved: Halved) -> None:
    records = [folder / "data" / "run.json" for folder in sorted((halved.out / "runs").iterdir())]
    assert len(records) == 4
    assert len({record.stat().st_ino for record in records}) == 1


def test_a_model_that_runs_share_is_asked_once(halved: Halved) -> None:
    """The second evaluation starts with the start model's answers, 4 problems in 2 modes."""
    evaluations = [read_run(folder / "eval") for folder in halved.runs("finished")]
    assert [record["resumed"] for record in evaluations] == [0, 0]
    samples = [
        [json.loads(line) for line in (folder / "eval" / "samples.jsonl").open(encoding="utf-8")]
        for folder in halved.runs("finished")
    ]
    start = [{row["key"] for row in rows if row["model"].endswith("learnt")} for rows in samples]
    assert start[0] == start[1] and len(start[0]) == 8


def test_the_record_has_every_figure_of_a_run(halved: Halved) -> None:
    record = halved.record
    best = record["runs"][record["best"]]
    assert best["value"] == max(e["value"] for e in record["runs"] if e["value"] is not None)
    for entry in (entry for entry in record["runs"] if entry["state"] == "finished"):
        accuracies = [entry["modes"][mode]["accuracy"] for mode in ("think", "no_think")]
        assert entry["value"] == pytest.approx(sum(accuracies) / 2)
        for mode in ("think", "no_think"):
            against = entry["against_parent"][mode]
            assert against["n"] == 4
            assert against["value"] == pytest.approx((against["won"] - against["lost"]) / 4)
            assert entry["kl"][mode] > 0
        margin, chosen, rejected = (
            entry["held_out"][name] for name in ("margin", "chosen", "rejected")
        )
        assert margin == pytest.approx(chosen - rejected, rel=1e-3)
    assert record["parent"] == "learnt"


def test_the_report_puts_runs_side_by_side(halved: Halved) -> None:
    page = (halved.out / "report.html").read_text()
    table = (halved.out / "table.md").read_text()
    for words in ("think against learnt", "KL, think", "margin", "thinking tokens", "stopped at 2"):
        assert words in page and words in table
    names = {path.stem for path in (halved.out / "report").glob("*.png")}
    assert names == {"accuracy-0", "along", "curves", "kl", "modes", "thinking"}
    assert 'src="http' not in page and 'href="http' not in page


def test_the_best_recipe_is_found_finished(halved: Halved) -> None:
    lines: list[str] = []
    folders = engine.run(load_recipe(halved.out / "best.yaml", ()), say=lines.append)
    assert [line.endswith("skipped") for line in lines] == [True] * 3
    best = halved.record["runs"][halved.record["best"]]
    assert folders[1] == Path(best["folder"]).resolve() / "apo"


def test_called_again_it_trains_nothing(halved: Halved, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", str(halved.file)]) == 0
    printed = capsys.readouterr().out
    assert "eval (eval): starting" not in printed and printed.count("resuming") == 1, (
        "the failed one"
    )
    assert "rung 2: 2 of 4 settings go on" in printed
    assert main(["experiment", str(halved.file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "4 runs of 3 stages: 12 in all, 9 different, 5 of those done" in printed
    assert "at step 2 of apo, 2 of 4 settings go on by apo.margin (3 measured)" in printed
    assert "halving takes 16 of 24 steps of apo" in printed  # 4 * 2 + 2 * (6 - 2)
    assert main(["plan", str(halved.file)]) == 0
    assert capsys.readouterr().out == printed


def test_paused_models_are_asked_a_task_and_a_lack_of_memory_ends_its_run_alone(
    tmp_path: Path, learnt: Path, task_file: Path
) -> None:
    halving = {"stage": "apo", "rungs": [1], "metric": "eval.sums.no_think.accuracy", "keep": 0.1}
    runs = [{"apo.train.learning_rate": rate} for rate in (0.5, 1e-9)]
    runs.append({"apo.lora.r": 2**43})  # more than an address space
    keys = {"runs": runs, "halving": halving, "set": {"apo.train.max_steps": 2}}
    file = write_experiment(tmp_path, learnt, task_file, **keys)
    lines: list[str] = []
    record = dualign.experiment(file, say=lines.append)
    states = [entry["state"] for entry in record["runs"]]
    assert states == ["stopped at 1", "finished", "failed"]
    assert "stage apo: no memory left" in record["runs"][2]["failure"]
    # At such a rate the model stays what it was, which has a quarter of these right.
    assert "learning_rate 1e-09: eval.sums.no_think.accuracy 0.25 at step 1" in lines
    assert "learning_rate 0.5: eval.sums.no_think.accuracy 0 at step 1" in lines
