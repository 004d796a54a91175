"""Whole sweeps of tiny models whose answers are known: by tasks, by a command, cut off, widened, refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import dualign.generation.responders as responders
from dualign.checkpoints.checkpoint import Checkpoint, read_whole
from dualign.cli.main import main
from dualign.merging.sweep import live, sweep
from dualign.merging.sweep.score_cache import ScoreCache
from tests.checkpoints.folders import write_model

WriteSweep = Callable[..., Path]


@pytest.fixture
def write_sweep(learnt: Path, untaught: Path, task_file: Path, tmp_path: Path) -> WriteSweep:
    """`write_sweep(vary={"a": [0.5]})` -> the file of a sweep; other keys of the stage by name, None leaves one out."""

    def write(**changes: Any) -> Path:
        stage = {
            "kind": "sweep",
            "merge": {
                "models": [
                    {"model": str(learnt), "weight": "$a"},
                    {"model": str(untaught), "weight": "1 - $a"},
                ]
            },
            "vary": {"a": [0.0, 1.0]},
            "score": {"tasks": [str(task_file)], "max_new_tokens": 20},
        }
        whole = {key: item for key, item in {**stage, **changes}.items() if item is not None}
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(whole), encoding="utf-8")
        return file

    return write


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts were really answered, each time that some were."""
    counts: list[int] = []
    real = responders.generate_batches

    def counting(model: Any, tokenizer: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        counts.append(len(prompts))
        return real(model, tokenizer, prompts, *args, **options)

    monkeypatch.setattr(responders, "generate_batches", counting)
    return counts


def found_in(out: Path) -> dict[str, Any]:
    return json.loads((out / "sweep.json").read_text(encoding="utf-8"))


def test_the_best_point_is_written_as_a_model_that_can_be_verified(
    write_sweep: WriteSweep, learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best"
    assert main(["sweep", str(write_sweep()), str(out)]) == 0
    found = found_in(out)
    assert [candidate["point"] for candidate in found["candidates"]] == [{"a": 0.0}, {"a": 1.0}]
    best = found["candidates"][found["best"]]
    assert (best["point"], best["value"]) == ({"a": 1.0}, 0.625)
    assert (best["modes"]["think"]["accuracy"], best["modes"]["no_think"]["accuracy"]) == (
        1.0,
        0.25,
    )
    assert best["front"] and best["tasks"]["sums"]["think"]["n"] == 4
    written, source = Checkpoint(out), Checkpoint(learnt)
    assert all(
        np.array_equal(read_whole(written, name), read_whole(source, name))
        for name in source.entries
    )
    assert main(["verify", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Best by mean: a = 1, 62.5 [" in said
    assert "1/2  a = 0: think 0.0, no_think" in said + capsys.readouterr().err
    assert "| 1 | 100.0 [51, 100] | 25.0 [" in (out / "table.md").read_text(encoding="utf-8")
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "scores.png").is_file()
    samples = [json.loads(line) for line in (out / "samples.jsonl").open(encoding="utf-8")]
    assert sum(sample["correct"] for sample in samples) == 5
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_difference_within_the_noise_is_said_to_be_one(
    write_sweep: WriteSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(vary={"a": [0.95, 1.0]})
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 0
    assert "Not distinguishable from a = 1 on these problems" in capsys.readouterr().out
    assert found_in(tmp_path / "best")["undecided"] == [1]


def test_a_wider_grid_asks_only_what_is_new_and_nothing_twice(
    write_sweep: WriteSweep, tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "best")
    assert main(["sweep", str(write_sweep()), out]) == 0
    assert asked == [8, 8]
    assert main(["sweep", str(write_sweep()), out]) == 0
    assert "done before, skipped" in capsys.readouterr().out
    wider = write_sweep(vary={"a": [0.0, 0.5, 1.0]})
    assert main(["sweep", str(wider), out, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "grid: 3 candidates" in shown and "known       2 of 3" in shown
    assert "2  a = 0.5\n" in shown and "1  a = 0  (known)" in shown
    assert "sums (4), in both modes" in shown and "8 answers a candidate" in shown
    assert main(["sweep", str(wider), out]) == 0
    assert asked == [8, 8, 8]
    assert [candidate["cached"] for candidate in found_in(Path(out))["candidates"]] == [
        True,
        False,
        True,
    ]


def test_a_sweep_that_was_cut_off_goes_on_where_it_stopped(
    write_sweep: WriteSweep, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, applied = live.LiveModel.apply, []

    def failing(self: Any, weights: Any, **options: Any) -> None:
        applied.append(1)
        if len(applied) == 2:
            raise KeyboardInterrupt
        real(self, weights, **options)

    monkeypatch.setattr(live.LiveModel, "apply", failing)
    out, file = tmp_path / "best", write_sweep()
    assert main(["sweep", str(file), str(out)]) == 130
    assert not out.exists()
    assert main(["sweep", str(file), str(out)]) == 0
    assert asked == [8, 8]
    assert found_in(out)["candidates"][0]["cached"]


def test_two_runs_give_the_same_bytes(write_sweep: WriteSweep, tmp_path: Path) -> None:
    file = write_sweep(vary={"a": [0.9]}, score=None, command="wc -c < {model}/model.safetensors")
    for name in ("one", "two"):
        assert main(["sweep", str(file), str(tmp_path / name)]) == 0
    first, second = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_golden_section_finds_its_peak_on_a_live_model(
    write_sweep: WriteSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(
        search="golden", budget=4, vary={"a": {"low": 0.0, "high": 1.0}}, objective="think"
    )
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 0
    found = found_in(tmp_path / "best")
    assert len(found["candidates"]) == 4
    low, high = found["search"]["interval"]
    assert high == 1.0 and low > 0.7
    assert "If the score has one peak, it is at a between" in capsys.readouterr().out


def test_a_greedy_soup_leaves_out_what_hurts(
    write_sweep: WriteSweep, learnt: Path, untaught: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    merge = {"models": [{"model": str(untaught)}, {"model": str(learnt)}]}
    file = write_sweep(merge=merge, vary=None, search="greedy_soup")
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 0
    found = found_in(tmp_path / "best")
    assert found["search"]["soup"] == [1]
    assert found["candidates"][found["best"]]["point"] == {"soup": [1]}
    assert "Greedy soup: learnt; left out: untaught." in capsys.readouterr().out


@pytest.fixture
def two_models(tmp_path: Path) -> dict[str, Any]:
    """A merge of two folders that no library has to load."""
    names = [str(write_model(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    return {
        "models": [
            {"model": names[0], "weight": "$a"},
            {"model": names[1], "weight": "1 - $a"},
        ]
    }


def command_sweep(tmp_path: Path, merge: Any, command: str, **changes: Any) -> Path:
    stage = {"kind": "sweep", "merge": merge, "vary": {"a": [0.25, 0.5]}, "command": command}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**stage, **changes}), encoding="utf-8")
    return file


SCORE = """
import json, sys, pathlib
folder = pathlib.Path(sys.argv[1])
with open(sys.argv[2], "a") as log: log.write(str(folder) + "\\n")
from dualign.checkpoints.checkpoint import Checkpoint, read_whole
value = read_whole(Checkpoint(folder), "model.norm.weight")[0]
print("norm 1 of 8 is", float(value))
"""


def test_a_command_scores_written_candidates_which_go_afterwards(
    two_models: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, script = tmp_path / "log.txt", tmp_path / "score.py"
    script.write_text(SCORE, encoding="utf-8")
    command = f"{sys.executable} {script} {{model}} {log}"
    out = tmp_path / "best"
    file = command_sweep(tmp_path, two_models, command, best="lowest", files=[str(script)])
    assert main(["sweep", str(file), str(out)]) == 0
    ends = [float(read_whole(Checkpoint(tmp_path / name), "model.norm.weight")[0]) for name in "ab"]
    found = found_in(out)
    values = [candidate["value"] for candidate in found["candidates"]]
    expected = [a * ends[0] + (1 - a) * ends[1] for a in (0.25, 0.5)]
    assert values == pytest.approx(expected, rel=1e-6)
    assert found["best"] == values.index(min(values))
    folders = log.read_text().split()
    assert len(folders) == 2 and not any(Path(folder).exists() for folder in folders)
    assert not (out / "pareto.png").exists() and (out / "scores.png").is_file()
    assert "One number has no interval." in capsys.readouterr().out
    wider = command_sweep(
        tmp_path, two_models, command, best="lowest", files=[str(script)], vary={"a": [0.25, 0.9]}
    )
    assert main(["sweep", str(wider), str(out)]) == 0
    assert len(log.read_text().split()) == 3, "0.25 was known"
    script.write_text(script.read_text() + "\n")
    assert main(["sweep", str(wider), str(out)]) == 0
    assert len(log.read_text().split()) == 5, "another script may say something else"


RANGE = {"a": {"low": 0.0, "high": 1.0}}


def test_cma_tries_as_many_candidates_as_its_budget(
    two_models: dict[str, Any], tmp_path: Path
) -> None:
    file = command_sweep(
        tmp_path, two_models, "echo 1 # {model}", search="cma", budget=5, vary=RANGE
    )
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 0
    found = found_in(tmp_path / "best")
    assert len(found["candidates"]) == 5
    assert found["search"]["generations"] == 1


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"search": "golden", "vary": RANGE}, "golden: at most 11 candidates"),
        ({"search": "cma", "budget": 7, "vary": RANGE}, "cma: at most 7 candidates"),
        ({"search": "greedy_soup", "vary": {}}, "greedy_soup: at most 3 candidates"),
    ],
    ids=lambda item: item["search"] if isinstance(item, dict) else "",
)
def test_a_dry_run_says_how_many_candidates_a_search_may_ask_for(
    changes: dict[str, Any], shown: str, two_models: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if changes["search"] == "greedy_soup":
        two_models = {"models": [{"model": model["model"]} for model in two_models["models"]]}
    file = command_sweep(tmp_path, two_models, "echo 1 # {model}", **changes)
    assert main(["sweep", str(file), str(tmp_path / "best"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert shown in said and "by the command, on each candidate's folder: echo 1" in said
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "sweep.yaml"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo none # {model}", "a = 0.25: the command printed no number"),
        ("echo 3; false {model}", "a = 0.25: the command exited with 1"),
    ],
)
def test_a_command_that_gives_no_score_stops_the_sweep(
    command: str, message: str, two_models: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = command_sweep(tmp_path, two_models, command)
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "best").exists()


def test_the_last_number_of_a_command_is_its_score() -> None:
    from dualign.merging.sweep.scoring import run_command

    printed = {
        "1 2 -3.5e-2": -0.035,
        "acc 0.75.": 0.75,
        "3 in run-18": 3,
        "7 of 9 (77.8%)": 77.8,
        "v2 .5": 0.5,
    }
    for text, value in printed.items():
        assert run_command(f"echo '{text}' # {{model}}", Path("x"), "a") == value


def test_a_point_that_cannot_be_merged_is_listed_and_the_others_go_on(
    two_models: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge = {**two_models, "normalize": False, "dtype": "float16"}
    file = command_sweep(tmp_path, merge, "echo 1 {model}", vary={"a": [0.5, 1e8]})
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 0
    found = found_in(tmp_path / "best")
    assert "as float16" in found["candidates"][1]["failed"]
    assert "1 of 2 candidates couldn't be merged." in capsys.readouterr().out
    assert "| can't be merged |" in (tmp_path / "best/table.md").read_text(encoding="utf-8")


def test_what_is_wrong_with_the_inputs_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_model(tmp_path / "a", 0)
    write_model(tmp_path / "b", 1)
    _poison(tmp_path / "b")
    merge = {"models": [{"model": str(good), "weight": "$a"}, {"model": str(tmp_path / "b"), "weight": 1.0}]}  # fmt: skip
    file = command_sweep(tmp_path, merge, "echo 1 {model}", vary={"a": [0.1, 0.2, 0.3]})
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 2
    error = capsys.readouterr().err
    assert "model.norm.weight holds NaN or infinite values" in error.split("error:")[1]
    assert "3/3" not in error
    assert not (tmp_path / "best").exists()


def _poison(folder: Path) -> None:
    entry = Checkpoint(folder).entries["model.norm.weight"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.array([np.nan], np.float32).tobytes())


def test_a_folder_that_is_no_sweeps_is_left_alone(
    write_sweep: WriteSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    assert main(["sweep", str(write_sweep()), str(mine)]) == 2
    assert "is there already, and isn't a sweep's" in capsys.readouterr().err
    assert (mine / "thesis.txt").exists()


def test_candidates_of_two_kinds_are_refused(
    write_sweep: WriteSweep, learnt: Path, untaught: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    slices = [
        {"sources": [{"model": str(learnt), "layer_range": [0, 1]}]},
        {"sources": [{"model": str(untaught), "layer_range": ["$a", 2]}]},
    ]
    file = write_sweep(merge={"merge_method": "passthrough", "slices": slices}, vary={"a": [1, 0]})
    assert main(["sweep", str(file), str(tmp_path / "best")]) == 2
    assert "candidates differ in config" in capsys.readouterr().err


def test_a_stage_of_a_recipe_is_planned_run_and_reported(
    write_sweep: WriteSweep, learnt: Path, task_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stage = {"name": "line", **yaml.safe_load(write_sweep().read_text(encoding="utf-8"))}
    check = {
        "name": "eval", "kind": "eval", "models": ["stage:line"], "tasks": [str(task_file)],
        "max_new_tokens": 20,
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    whole = {"output_dir": str(tmp_path / "runs"), "stages": [stage, check]}
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    assert main(["plan", str(file)]) == 0
    assert "grid over a; each candidate scored by 1 task(s), both modes" in capsys.readouterr().out
    assert main(["run", str(file)]) == 0
    page = (tmp_path / "runs/report.html").read_text(encoding="utf-8")
    assert "Sweep: line" in page and "Best by mean: a = 1" in page
    assert (tmp_path / "runs/report/line-pareto.png").is_file()
    metrics = json.loads((tmp_path / "runs/eval/metrics.json").read_text(encoding="utf-8"))
    assert metrics["tasks"]["sums"]["think"]["accuracy"] == 1.0
    record = json.loads((tmp_path / "runs/line/run.json").read_text(encoding="utf-8"))
    assert record["metrics"]["best"] == {"a": 1.0}
    assert record["data"][0]["rows"] == 4
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert "known       2 of 2" in capsys.readouterr().out


def test_a_line_that_a_crash_cut_is_dropped(tmp_path: Path) -> None:
    memory = ScoreCache(tmp_path, "s")
    memory.add({"key": "a", "value": 1.0})
    with memory.scores.open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "va')
    assert [*memory.read()] == ["a"]
    memory.add({"key": "c", "value": 2.0})
    assert [*memory.read()] == ["a", "c"]


def test_a_search_is_driven_to_its_end_even_if_it_asks_for_nothing() -> None:
    def nothing() -> Any:
        return {"done": True}
        yield

    assert sweep._run_search(nothing(), lambda point: 0.0) == {"done": True}
