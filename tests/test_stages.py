"""A new kind of stage is one row of `STAGE_KINDS` and its code: here two kinds that only this file knows."""

import gc
import io
import json
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from rich.console import Console

from dualign import engine, stages
from dualign.cli import main as cli
from dualign.cli.main import main
from dualign.cost.show import show_plan
from dualign.doctor.doctor import diagnose_recipe
from dualign.errors import ConfigError, PublishError
from dualign.publish.lineage import read_lineage
from dualign.recipe import Recipe, load_recipe
from dualign.report.report import write_report
from dualign.rundir import Outcome, read_run
from dualign.sft.config import SFTStage
from dualign.stages import STAGE_KINDS, StageKind, stage_kind
from dualign.training.config import TrainingStage
from tests.chat_model import make_model, make_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class SumsStage:
    """Sums with their answers, as rows."""

    name: str
    """names the stage and its run directory"""
    count: int
    """how many"""
    kind: Literal["sums"] = "sums"
    """what the stage does"""
    launch: str | None = None
    """an accelerate config file"""


def write_sums(stage: SumsStage, work: Path, *, seed: int) -> Outcome:
    """Write `count` rows, half of them with thinking."""
    with (work / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(stage.count):
            thinking = {"reasoning_content": f"{i} and {seed} make"} if i % 2 else {}
            answer = {"role": "assistant", "content": str(i + seed), **thinking}
            turns = [{"role": "user", "content": f"{i} + {seed}?"}, answer]
            mode = "think" if thinking else "no_think"
            file.write(json.dumps({"messages": turns, "mode": mode}) + "\n")
    return Outcome(metrics={"sums": stage.count})


@dataclass(frozen=True, kw_only=True, slots=True)
class MidtrainStage(SFTStage):
    """Training of a kind of its own."""

    kind: Literal["midtrain"] = "midtrain"
    """what the stage does"""


SUMS = StageKind(
    name="sums",
    config=f"{__name__}:SumsStage",
    run=f"{__name__}:write_sums",
    command="sums",
    about="write sums",
    generates_rows=True,
)
MIDTRAIN = StageKind(
    name="midtrain",
    config=f"{__name__}:MidtrainStage",
    run="dualign.sft.train:run",
    command="midtrain",
    about="train before SFT",
    trains=True,
    makes_model=True,
)


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only change: two more rows."""
    monkeypatch.setattr(stages, "STAGE_KINDS", (*STAGE_KINDS, SUMS, MIDTRAIN))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    tokenizer = make_tokenizer()
    make_model(tokenizer, width=16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "zero.yaml").write_text("num_processes: 2\n")
    train = {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_checkpointing": False}
    data = {"sources": [{"path": "stage:data/rows.jsonl"}], "max_tokens": 256}
    middle = {"name": "middle", "kind": "midtrain", "model": "base", "data": data, "train": train}
    value = {
        "name": "sums",
        "output_dir": str(tmp_path / "out"),
        "seed": 3,
        "stages": [{"name": "data", "kind": "sums", "count": 12}, middle],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    return load_recipe(tmp_path / "recipe.yaml", [])


def planned(recipe: Recipe) -> str:
    console = Console(file=io.StringIO(), width=120)
    show_plan(recipe, console=console)
    return console.file.getvalue()


def test_stages_of_new_kinds_are_planned_examined_run_reported_and_published(
    recipe: Recipe,
) -> None:
    assert "rows and tokens: known when stage data has run" in planned(recipe)
    assert "waits_for_stage" in {finding.code for finding in diagnose_recipe(recipe).findings.all()}

    out = recipe.output_dir
    folders = engine.run(recipe, say=lambda text: None)
    assert folders == [out / "data", out / "middle"]
    assert read_run(out / "middle")["parents"] == {"data": read_run(out / "data")["fingerprint"]}

    assert "tokens in an epoch" in planned(recipe)
    found = diagnose_recipe(recipe)
    assert (found.rows["in"], found.findings.errors) == (12, 0)
    write_report(out, folders, title=recipe.name)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "midtrain" in page and "sums" in page

    lineage = read_lineage(out / "middle")
    assert [stage.name for stage in lineage.training] == ["middle"]
    with pytest.raises(PublishError, match=r"of kind sums leaves no model; publish.*middle"):
        read_lineage(out / "data")


def test_a_new_kind_has_its_command_and_its_keys(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "write sums" in capsys.readouterr().out
    assert main(["sums", str(recipe.file), "data.count=2"]) == 0
    assert len((recipe.output_dir / "data" / "rows.jsonl").read_text().splitlines()) == 2
    assert main(["recipes", "keys", "sums"]) == 0
    assert "- `count` (a whole number, required): how many" in capsys.readouterr().out


def test_every_launched_kind_starts_its_own_command(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kind other than sft used to be started as `dualign prefer`."""
    started: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

        def wait(self, timeout: float) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Started)
    launch = ["data.launch=zero.yaml", "middle.launch=zero.yaml"]
    overrides = [text.replace("zero.yaml", str(tmp_path / "zero.yaml")) for text in launch]
    launched = load_recipe(recipe.file, overrides)
    for name in ("data", "middle"):
        status = next(item for item in engine.statuses(launched) if item.entry.name == name)
        engine._run_stage(launched, status, engine.statuses(launched))
    config = str(tmp_path / "zero.yaml")
    launcher = [sys.executable, "-m", "dualign.first_failure", "--config_file", config]
    assert started == [
        [*launcher, "-m", "dualign", command, "--stage", name, str(recipe.file), *overrides]
        for command, name in (("sums", "data"), ("midtrain", "middle"))
    ]
    for command in started:
        parsed = cli._parser().parse_args(command[command.index("dualign") + 1 :])
        assert parsed.overrides == overrides, "argparse takes none behind --stage"


@pytest.mark.parametrize("kind", [*STAGE_KINDS, SUMS, MIDTRAIN], ids=lambda kind: kind.name)
def test_a_row_agrees_with_its_dataclass(kind: StageKind) -> None:
    names = {field.name: field for field in fields(kind.config_class)}
    assert names["kind"].default == kind.name
    assert kind.trains == issubclass(kind.config_class, TrainingStage)
    assert kind.command or not kind.launchable, "a launcher has nothing to start"
    assert callable(kind.runner)


def test_a_kind_that_no_row_names_is_refused_in_a_recipe_and_has_no_flags(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"expected one of script, .*, sums, midtrain, found 'x'"):
        load_recipe(recipe.file, ["data.kind=x"])
    unknown = stage_kind("from a later version")
    assert not (unknown.trains or unknown.makes_model or unknown.evaluates)


def test_no_garbage_is_looked_for_while_a_stage_is_imported_and_then_it_is_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stage_of_this_test.py").write_text("import gc\ncollects = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("collects", "absent"):
        kind = StageKind(name="made", config=f"stage_of_this_test:{name}", run="")
        if name == "absent":
            with pytest.raises(AttributeError):
                _ = kind.config_class
        else:
            assert kind.config_class is False
        assert gc.isenabled()
