"""`dualign runs`, `clean` and `env` on output folders that real runs left."""

import shutil
from pathlib import Path

import pytest

from dualign import api
from dualign.cli.main import main
from dualign.errors import DualignError
from dualign.report.key_figures import key_figure
from dualign.rundir import locked, open_work, work_folder, write_json
from dualign.storage.runs import read_runs

RECIPE = """
name: two
output_dir: {out}
stages:
  - {{name: rows, kind: script, script: rows.py}}
  - {{name: more, kind: script, script: more.py}}
"""
WRITES = "import pathlib, sys\npathlib.Path(sys.argv[2], 'rows.jsonl').write_text('{}')\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second stage failed."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "rows.py").write_text(WRITES)
    (folder / "more.py").write_text(WRITES + "raise SystemExit(3)\n")
    (folder / "two.yaml").write_text(RECIPE.format(out=folder / "two"))
    with pytest.raises(DualignError):
        api.run(api.load_recipe(folder / "two.yaml"), say=lambda line: None)
    return folder / "two"


@pytest.fixture
def cut_off(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of that run; the caches are empty."""
    monkeypatch.setenv("DUALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DUALIGN_TOKENS", raising=False)
    shutil.copytree(finished, tmp_path / "runs" / "two")
    return tmp_path / "runs"


def test_runs_tell_how_far_each_stage_is(cut_off: Path, capsys: pytest.CaptureFixture[str]):
    (run,) = read_runs(cut_off)
    assert [(stage.name, stage.state) for stage in run.stages] == [
        ("rows", "done"),
        ("more", "cut off"),
    ]
    for step, files in {9: ["complete"], 12: ["complete"], 15: []}.items():
        checkpoint = run.path / ".more.partial" / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in files:
            (checkpoint / name).touch()
    (going_on,) = read_runs(cut_off)
    assert going_on.stages[1].state == "cut off, checkpoint of step 12", "the next was half written"
    assert run.size >= sum(stage.size for stage in run.stages) > 0
    assert not run.is_running
    with locked(run.path):
        (live,) = read_runs(cut_off)
        assert live.is_running
        assert live.stages[1].state.startswith("cut off"), "the run hasn't come to it yet"
        open_work(run.path / "more", "its fingerprint")
        (live,) = read_runs(cut_off)
        assert live.stages[1].state == "running"
    (run.path / "rows" / "run.json").write_text("{half")
    (damaged,) = read_runs(cut_off)
    assert {stage.name: stage.state for stage in damaged.stages}["rows"] == "damaged"
    assert main(["runs", str(cut_off)]) == 0
    assert "damaged" in capsys.readouterr().out
    assert main(["runs", str(cut_off / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_stage_that_was_cut_off_has_no_time_left(cut_off: Path):
    more = cut_off / "two" / "more"
    progress = {"unit": "step", "done": 45, "total": 102, "seconds": 90, "figures": {"loss": 0.5}}
    write_json(work_folder(more) / "progress.json", progress)
    (run,) = read_runs(cut_off)
    assert run.stages[1].figure == "stopped at step 45 of 102, loss 0.5"
    with locked(run.path):
        work, _ = open_work(more, "another fingerprint")
        write_json(work / "progress.json", progress)
        (live,) = read_runs(cut_off)
    assert live.stages[1].figure == "step 45 of 102, 1 min 54 s left, loss 0.5"


def test_clean_deletes_what_is_named_and_nothing_else(
    cut_off: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(cut_off.parent)  # long paths would be cut into lines
    out = Path("runs", "two")
    old = out / ".rows.old"
    old.mkdir()
    (old / "weights").write_bytes(bytes(2000))
    assert main(["clean", "runs"]) == 0
    text = capsys.readouterr().out
    assert ".rows.old" in text
    assert ".more.partial" in text
    assert "nothing was deleted" in text
    assert main(["clean", "runs", "--delete", "everything"]) == 2
    assert "expected some of leftovers" in capsys.readouterr().err
    with locked(out):
        assert main(["clean", "runs", "--delete", "leftovers,unfinished"]) == 0
    assert old.is_dir()
    assert main(["clean", "runs", "--delete", "leftovers"]) == 0
    assert "freed 2.00 kB" in capsys.readouterr().out
    assert not old.exists()
    assert (out / ".more.partial").is_dir()
    assert main(["clean", "runs", "--delete", "unfinished"]) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["rows"]


def test_prepared_rows_may_go(cut_off: Path, capsys: pytest.CaptureFixture[str]):
    tokens = cut_off.parent / "cache" / "tokens"
    (tokens / "key").mkdir(parents=True)
    assert main(["clean", str(cut_off), "--delete", "tokens"]) == 0
    assert not tokens.exists()
    assert read_runs(cut_off)[0].stages[0].state == "done"


@pytest.mark.parametrize(
    ("record", "figure"),
    [
        ({"metrics": {"first_loss": 1.5, "last_loss": 0.25}}, "loss 1.5000 -> 0.2500"),
        (
            {"metrics": {"first_loss": 1, "last_loss": 1, "validation": {"eval_loss": 0.5}}},
            "held-out loss 0.5000",
        ),
        (
            {"metrics": {"tasks": {"t": {m: {"accuracy": 0.5} for m in ("think", "no_think")}}}},
            "think 50.0 %, no_think 50.0 % (mean of 1 task)",
        ),
        ({"metrics": {}, "rows": {"kept": 1200}}, "1,200 rows"),
        ({"metrics": {"tasks": {}}}, ""),
        ({}, ""),
    ],
)
def test_the_figure_that_says_most(record: dict, figure: str):
    assert key_figure(record) == figure


def test_env_shows_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "transformers: " in text
    assert "OMP_NUM_THREADS: 1" in text
    assert "verysecret" not in text
    assert "hypothesis" not in text
