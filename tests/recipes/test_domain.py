"""The domain recipe: its script makes what it says, its stages fit together, and it starts after the quickstart."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.recipe import load_recipe
from dualign.recipe_file import shipped_names
from dualign.tasks.table import load_questions
from tests.chat_model import fit, make_model, make_tokenizer, taught_row

RECIPES = Path(__file__).parents[2] / "recipes"
DOMAIN = RECIPES / "domain"
SIZES = ("--train", "30", "--pairs", "12", "--test", "9")
OLD = ("--train", "6", "--pairs", "6", "--heldout-pairs", "6", "--pair-prompts", "6", "--test", "6")


def script(recipe: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(RECIPES / recipe / "problems.py"), "--out", str(out)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "runs" / "quickstart"
    assert script("quickstart", folder / "data", *OLD).returncode == 0
    return folder


@pytest.fixture(scope="module")
def data(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    made = script("domain", out, *SIZES, "--seed", "3", "--quickstart", str(quickstart / "data"))
    assert made.returncode == 0, made.stderr
    return out


def cargo(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("cargo.jsonl", "test/cargo.jsonl", "pair_prompts/cargo.jsonl"):
        yield from ((name, row) for row in read(folder / name))


def test_answers_are_right_sentences_without_traces(data: Path) -> None:
    for _, row in cargo(data):
        total = sum(map(int, re.findall(r"\d+", row["question"])))
        assert row["answer"] == f"It carries {total} tons."
        assert row["tons"] == str(total)
        assert set(row) == {"id", "question", "answer", "tons", "difficulty"}


def test_no_cargo_is_in_two_files_nor_twice_in_one(data: Path) -> None:
    loads = [frozenset(re.findall(r"[a-z]+ \d+", row["question"])) for _, row in cargo(data)]
    assert len(set(loads)) == len(loads) == 30 + 12 + 9


def test_the_same_seed_gives_the_same_files_and_the_test_set_whatever_is_trained(
    quickstart: Path, data: Path, tmp_path: Path
) -> None:
    more = ("--train", "40", *SIZES[2:], "--seed", "3", "--quickstart", str(quickstart / "data"))
    assert script("domain", tmp_path, *more).returncode == 0
    assert read(tmp_path / "test/cargo.jsonl") == read(data / "test/cargo.jsonl")
    assert read(tmp_path / "cargo.jsonl")[:30] == read(data / "cargo.jsonl")


def test_the_quickstarts_rows_and_tasks_lie_beside_them(quickstart: Path, data: Path) -> None:
    assert read(data / "quickstart-train.jsonl") == read(quickstart / "data" / "train.jsonl")
    tasks = load_questions(sorted((data / "tasks").glob("*.yaml")))
    assert {task.name for task, _ in tasks} == {
        f"{kind}{family}"
        for kind in ("", "pairs-")
        for family in ("sums", "routes", "prices", "cargo")
    }


def test_without_the_quickstart_the_script_says_what_comes_first(tmp_path: Path) -> None:
    made = script("domain", tmp_path, "--quickstart", str(tmp_path / "none"))
    assert made.returncode and "make demo" in made.stderr and "Traceback" not in made.stderr
    assert not any(tmp_path.iterdir())


def test_a_run_without_the_quickstart_ends_in_one_message_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "domain"])
    said = capsys.readouterr().err
    assert "runs/quickstart/merged: no such folder" in said
    assert "`dualign run quickstart` makes it" in said
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_recipe_is_listed_and_its_stages_know_each_other() -> None:
    assert "domain" in shipped_names()
    recipe = load_recipe(DOMAIN / "recipe.yaml", [])
    kinds = [entry.kind for entry in recipe.stages]
    assert kinds[:3] == ["script", "traces", "sft"] and kinds[-1] == "eval"
    by_name = {entry.name: entry.config for entry in recipe.stages}
    alone, sft = by_name["alone"], by_name["sft"]
    assert alone.train == sft.train and alone.lora == sft.lora, "only replay tells them apart"
    *same, replay = sft.data.sources
    assert tuple(same) == alone.data.sources and replay.label == "replay"
    documents = sorted(Path(same[1].path).glob("*.md"))
    assert documents and all(
        "Tarn" in page.read_text() or "clerk" in page.read_text() for page in documents
    )
    for stage in (alone, sft):
        assert set(stage.data.decontaminate.tasks) == set(by_name["eval"].tasks)


def test_copied_recipes_start_from_the_quickstart_of_the_folder(tmp_path: Path) -> None:
    shutil.copytree(DOMAIN, tmp_path / "mine")
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml", [])
    (traces,) = (entry.config for entry in recipe.stages if entry.name == "traces")
    assert traces.model == "runs/quickstart/merged"


SMALL = (
    "traces.expected='2'",  # what the tiny model always says
    "traces.max_new_tokens=40",
    "traces.min_trace_tokens=4",
    "traces.data.sources.0.rows=6",
    "pairs.rejected_model=stage:alone",  # none of its answers is right
    "pairs.rows=4",
    "pairs.max_new_tokens=40",
    "start-pairs.rows=3",
    "start-pairs.max_new_tokens=40",
    "sft.retain.rows=2",
    "sft.retain.max_new_tokens=24",
    "eval.rows=2",
    *(f"{stage}.lora.r=2" for stage in ("alone", "sft", "apo", "recovered")),
    *(f"{stage}.train.max_steps=2" for stage in ("alone", "sft", "apo", "recovered")),
    *(f"{stage}.data.max_tokens=448" for stage in ("alone", "sft", "apo", "recovered")),
    *(f"data.args.{name}={rows}" for name, rows in (("train", 6), ("pairs", 6), ("test", 6))),
)


@pytest.mark.slow
def test_the_road_in_small_from_a_tiny_model(
    quickstart: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shapes alone: a model that says `2` to everything learns nothing here."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(quickstart, tmp_path / "runs" / "quickstart")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    asked = [row["question"] for _, row in cargo(data)][:12]
    # Two ways to think, so that samples differ and become pairs.
    said = [("think", f"{way} = 2\n</think>\n\n2") for way in ("1 + 1", "2 + 0")]
    said.append(("no_think", "2"))
    fit(model, [taught_row(tokenizer, q, m, text) for q in asked for m, text in said], 30)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "runs" / "quickstart" / "merged")
    assert main(["plan", "domain", *SMALL]) == 0
    assert main(["run", "domain", *SMALL]) == 0, capsys.readouterr().err
    table = (tmp_path / "runs" / "domain" / "eval" / "table.md").read_text()
    for stage in ("alone", "recovered", "sft", "merged"):
        assert f"| cargo | {stage} | think |" in table
    assert main(["run", "domain", *SMALL]) == 0
    assert "finished in" not in capsys.readouterr().err.split("report:")[-1]
