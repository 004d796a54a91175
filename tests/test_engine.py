"""The stage engine: skip what is done, redo what changed, refuse a second run, publish whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dualign import engine
from dualign.errors import CheckpointError, DataError, OutOfMemoryError
from dualign.recipe import Recipe, StageEntry, load_recipe
from dualign.rundir import locked, read_run

SCRIPT = """
import argparse, pathlib, sys, time
p = argparse.ArgumentParser()
p.add_argument("--out"); p.add_argument("--seed"); p.add_argument("--text", default="hello")
p.add_argument("--read"); p.add_argument("--seconds", type=float, default=0); p.add_argument("--fail", type=int, default=0)
a = p.parse_args()
with pathlib.Path(__file__).with_name("starts.txt").open("a") as starts:
    starts.write("start\\n")
out = pathlib.Path(a.out)
(out / "half.txt").write_text("half")
time.sleep(a.seconds)
if a.fail:
    sys.exit(3)
read = pathlib.Path(a.read).read_text() if a.read else ""
(out / "text.txt").write_text(read + a.text + a.seed)
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "make.py").write_text(SCRIPT)
    stages = [
        {"name": "first", "kind": "script", "script": "make.py"},
        {
            "name": "second",
            "kind": "script",
            "script": "make.py",
            "args": {"read": "stage:first/text.txt"},
        },
        {"name": "other", "kind": "script", "script": "make.py", "args": {"text": "aside"}},
    ]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": str(folder / "out"), "seed": 1, "stages": stages}))
    return load_recipe(path, overrides)


def states(made: Recipe) -> list[str]:
    return [status.state for status in engine.statuses(made)]


def run(made: Recipe, **options: str) -> list[str]:
    said: list[str] = []
    engine.run(made, say=said.append, **options)
    return said


def test_stages_run_in_order_and_leave_run_directories(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    assert states(made) == ["new", "new", "new"]
    run(made)
    second = tmp_path / "out" / "second"
    assert (second / "text.txt").read_text() == "hello1hello1"
    record = read_run(second)
    assert record["parents"] == {"first": read_run(tmp_path / "out" / "first")["fingerprint"]}
    assert {
        "schema",
        "kind",
        "seed",
        "config",
        "versions",
        "seconds",
        "peak_rss_mb",
    } <= record.keys()
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_a_second_run_skips_everything(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    run(made)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("text.txt")}
    assert all("skipped" in line for line in run(made))
    assert (tmp_path / "starts.txt").read_text() == "start\n" * 3
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("text.txt")
    }


def test_a_change_redoes_the_stage_and_what_hangs_on_it(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    made = recipe(tmp_path, "first.args.text=bye")
    assert states(made) == ["changed", "changed", "done"]
    run(made)
    assert (tmp_path / "out" / "second" / "text.txt").read_text() == "bye1hello1"


def test_a_changed_script_is_a_change(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    run(made)
    (tmp_path / "make.py").write_text(SCRIPT + "\n# changed\n")
    assert states(made) == ["changed", "changed", "changed"]


def test_a_folder_named_like_a_template_that_ships_is_no_part_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run from a checkout, `template: dualign` used to count the package's own folder, compiled files and all."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    stage = {
        "name": "sft",
        "kind": "sft",
        "model": "embedded:smollm2-135m-instruct",
        "template": "dualign",
        "data": {"sources": [{"path": "rows.jsonl"}]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"output_dir": "out", "stages": [stage]}))
    monkeypatch.chdir(tmp_path)
    before = load_recipe(path, [])
    print_before = engine.statuses(before)[0].fingerprint
    (tmp_path / "dualign").mkdir()
    (tmp_path / "dualign" / "new.py").write_text("")
    after = load_recipe(path, [])
    assert after.stages[0].config.template == "dualign"
    assert engine.statuses(after)[0].fingerprint == print_before


def test_a_moved_output_folder_or_recipe_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir(), second.mkdir()
    prints = [
        [s.fingerprint for s in engine.statuses(recipe(folder))] for folder in (first, second)
    ]
    assert prints[0] == prints[1]


def test_a_failed_stage_leaves_no_run_directory_and_keeps_the_old_one(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    with pytest.raises(DataError, match="exited with 3"):
        run(recipe(tmp_path, "second.args.fail=1"))
    assert (tmp_path / "out" / "second" / "text.txt").read_text() == "hello1hello1"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with pytest.raises(DataError):
        run(recipe(fresh, "first.args.fail=1"))
    assert not (fresh / "out" / "first").exists()


def test_kill_9_leaves_the_directory_absent_and_the_next_run_finishes(tmp_path: Path) -> None:
    made = recipe(tmp_path, "second.args.seconds=900")
    command = [sys.executable, "-m", "dualign", "run", str(made.file), *made.overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    half = tmp_path / "out" / ".second.partial" / "half.txt"
    while not half.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "out" / "first").is_dir()
    assert not (tmp_path / "out" / "second").exists()
    assert states(made) == ["done", "cut off", "new"]
    run(recipe(tmp_path))
    assert (tmp_path / "out" / "second" / "text.txt").read_text() == "hello1hello1"


def test_work_that_was_finished_but_not_published_is_published(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    run(made)
    out = tmp_path / "out"
    (out / "second").rename(out / ".second.partial")
    fingerprint = read_run(out / ".second.partial")["fingerprint"]
    (out / ".second.partial" / "stage.json").write_text(
        json.dumps({"fingerprint": fingerprint, "starts": 1})
    )
    marked = out / ".second.partial" / "text.txt"
    before = marked.stat().st_mtime_ns
    run(made)
    assert (out / "second" / "text.txt").stat().st_mtime_ns == before


def test_two_runs_into_one_directory_are_refused(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    code = (
        "import sys; from pathlib import Path; from dualign.rundir import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(made.output_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline().strip() == "held"
    try:
        with pytest.raises(
            CheckpointError, match=rf"another run is writing here \(process {holder.pid} "
        ):
            run(made)
    finally:
        holder.kill()
        holder.wait()
    run(made)  # the lock went with the process


def test_the_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        pass


def test_one_stage_alone_needs_its_parents(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    with pytest.raises(CheckpointError, match="stage second needs it and it is new"):
        run(made, only="second")
    run(made, only="first")
    run(made, only="second")
    assert not (tmp_path / "out" / "other").exists()


def test_a_reference_to_a_file_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    made = recipe(tmp_path, "second.args.read=stage:first/txt.txt")
    with pytest.raises(
        CheckpointError, match=r"no txt\.txt in .*there: half\.txt, run\.json, text\.txt"
    ):
        run(made)


def test_a_device_without_memory_is_a_message() -> None:
    entry = StageEntry(name="apo", kind="preference", seed=0, config=None)
    with (
        pytest.raises(OutOfMemoryError, match=r"stage apo: no memory left: CUDA .*per_device"),
        engine._memory_in_words(entry),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="shapes"), engine._memory_in_words(entry):
        raise RuntimeError("shapes differ")
