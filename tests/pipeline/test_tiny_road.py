"""The whole road on a tiny model, by the command line: data -> SFT -> pairs -> APO -> merge -> evaluation -> report."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dualign.cli.main import main

SCRIPT = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path); parser.add_argument("--seed", type=int)
out = parser.parse_args().out
sums = {"1+2": 3, "4+5": 9, "2+2": 4, "7+1": 8}
rows, tests, pairs = [], [], []
for question, answer in sums.items():
    user = {"role": "user", "content": f"What is {question}?"}
    tests.append({"id": question, "prompt": user["content"], "answer": str(answer), "difficulty": 1})
    for mode in ("think", "no_think"):
        trace = {"reasoning_content": f"it is {answer}"} if mode == "think" else {}
        right = {"role": "assistant", "content": str(answer), **trace}
        rows += [{"messages": [user, right], "mode": mode}] * 6
        pairs += [{"prompt": [user], "chosen": [right], "rejected": [{**right, "content": "0"}], "mode": mode}] * 3
for name, made in (("train", rows), ("sums", tests), ("pairs", pairs)):
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in made))
(out / "sums.yaml").write_text("name: sums\\nrows: sums.jsonl\\nverifier: integer\\nmax_new_tokens: 30\\n")
"""
TRAIN = {
    "learning_rate": 1e-3,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


def recipe(model: Path) -> dict:
    def source(name: str, **data: object) -> dict:
        return {
            "sources": [{"path": f"stage:data/{name}.jsonl"}],
            "validation_rows": 4,
            "max_tokens": 256,
            **data,
        }

    def apo(name: str, pairs: str, seed: int) -> dict:
        data = {**source("pairs", packing="none"), "sources": [{"path": pairs}]}
        train = {**TRAIN, "loss_type": "apo_zero", "beta": 0.2}
        return {
            "name": name,
            "kind": "preference",
            "seed": seed,
            "model": "stage:sft",
            "lora": {"r": 2},
            "data": data,
            "train": train,
        }

    return {
        "name": "tiny road",
        "output_dir": "out",
        "stages": [
            {"name": "data", "kind": "script", "script": "make.py"},
            {
                "name": "sft",
                "kind": "sft",
                "model": str(model),
                "lora": {"r": 4},
                "data": source("train"),
                "train": {
                    **TRAIN,
                    "learning_rate": 1e-2,
                    "max_steps": 40,
                    "eval_steps": 20,
                    "logging_steps": 5,
                },
            },
            {
                "name": "sampled",
                "kind": "pairs",
                "model": "stage:sft",
                "rejected_model": str(model),
                "tasks": ["stage:data/sums.yaml"],
                "max_new_tokens": 30,
                "temperature": 0.7,
            },
            apo("apo-1", "stage:data/pairs.jsonl", 1),
            {
                **apo("apo-2", "stage:sampled/pairs.jsonl", 2),
                "data": {
                    "sources": [{"path": "stage:sampled/pairs.jsonl"}],
                    "max_tokens": 256,
                    "packing": "none",
                },
                "train": {**TRAIN, "eval_strategy": "no", "loss_type": "apo_zero"},
            },
            {
                "name": "soup",
                "kind": "merge",
                "models": [{"model": "stage:apo-1"}, {"model": "stage:apo-2"}],
            },
            {
                "name": "merged",
                "kind": "merge",
                "models": [
                    {"model": "stage:soup", "weight": 0.9},
                    {"model": "stage:sft", "weight": 0.1},
                ],
            },
            {
                "name": "eval",
                "kind": "eval",
                "models": [str(model), "stage:sft", "stage:merged"],
                "tasks": ["stage:data/sums.yaml"],
                "pairs": ["stage:data/pairs.jsonl"],
            },
        ],
    }


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, learnt: Path) -> Path:
    """A folder in which the recipe has run."""
    folder = tmp_path_factory.mktemp("road")
    shutil.copytree(learnt, folder / "base")
    config = json.loads((learnt / "config.json").read_text())
    config["pad_token_id"] = config["eos_token_id"]  # as SmolLM2 has it, and stages change it
    (folder / "base" / "config.json").write_text(json.dumps(config))
    (folder / "make.py").write_text(SCRIPT)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder / "base"), sort_keys=False))
    with contextlib.chdir(folder):
        assert main(["run", "recipe.yaml"]) == 0
    return folder


def test_every_stage_leaves_a_run_directory_with_its_record(road: Path) -> None:
    for name in ("data", "sft", "sampled", "apo-1", "apo-2", "soup", "merged", "eval"):
        record = json.loads((road / "out" / name / "run.json").read_text())
        assert record["name"] == name
        assert record["fingerprint"] and record["seconds"] >= 0 and record["versions"]["torch"]
        if record["rows"]:
            for entry in (record["rows"], *record["rows"]["by"]):
                assert entry["in"] == entry["kept"] + sum(entry["dropped"].values())
    assert not list((road / "out").glob(".*.partial"))


def test_the_merge_applies_the_weights_that_were_asked_for(road: Path) -> None:
    record = json.loads((road / "out" / "merged" / "run.json").read_text())
    assert "0.9" in json.dumps(record["metrics"]) and "0.1" in json.dumps(record["metrics"])


def test_metrics_have_the_published_schema(road: Path) -> None:
    metrics = json.loads((road / "out" / "eval" / "metrics.json").read_text())
    assert metrics["model"].endswith("merged")
    for mode in ("think", "no_think"):
        figures = metrics["tasks"]["sums"][mode]
        assert {
            "accuracy",
            "accuracy_ci",
            "n",
            "leak_rate",
            "closed_rate",
            "think_tokens",
            "answer_tokens",
        } <= figures.keys()
        assert figures["n"] == 4
    assert metrics["tasks"]["sums"]["think"]["closed_rate"] == 1.0


def test_the_report_holds_every_stage_and_is_one_file(road: Path) -> None:
    page = (road / "out" / "report.html").read_text()
    for word in ("sft", "apo-1", "merged", "think", "no_think", "sums"):
        assert word in page
    assert 'src="http' not in page and 'href="http' not in page
    assert (road / "out" / "report.md").is_file()


SKIPPING = """
import sys
from dualign.cli.main import main
opened = []
sys.addaudithook(lambda event, about: opened.append(str(about[0])) if event == "open" else None)
status = main(["run", "recipe.yaml"])
heavy = ("torch", "transformers", "datasets", "trl", "peft")
print("imported:", [name for name in heavy if name in sys.modules])
print("read:", [name for name in opened if name.endswith(".safetensors")])
sys.exit(status)
"""


def test_running_again_skips_everything_and_reads_no_weights(road: Path) -> None:
    """It takes two seconds, of which the report is most."""
    done = subprocess.run(
        [sys.executable, "-c", SKIPPING], cwd=road, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped") == 8
    assert "next: dualign chat out/merged, or" in done.stdout
    assert "imported: []\nread: []" in done.stdout


@pytest.fixture
def command(
    road: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`command("plan", "recipe.yaml")` -> what it prints, run where the recipe is."""
    monkeypatch.chdir(road)

    def run(*arguments: str, typed: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        capsys.readouterr()
        status = main([*arguments])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    return run


def test_plan_says_what_is_done_and_what_a_change_would_redo(
    road: Path, command: Callable[..., str]
) -> None:
    before = sorted(path for path in (road / "out").rglob("*"))
    printed = command("plan", "recipe.yaml", "apo-2.train.beta=0.5")
    states = {
        line.split("│")[1].strip(): line.split("│")[3].strip()
        for line in printed.splitlines()
        if line.startswith("│")
    }
    assert states["sft"] == states["apo-1"] == "done"
    assert states["apo-2"] == states["soup"] == states["merged"] == states["eval"] == "changed"
    assert "tokens in a step" in printed and "peak memory" in printed
    assert before == sorted(path for path in (road / "out").rglob("*")), "plan writes nothing"


def test_inspect_shows_rows_of_both_modes(command: Callable[..., str]) -> None:
    printed = command("inspect", "recipe.yaml", "--stage", "sft", "--rows", "1")
    assert "/no_think" in printed and "it is" in printed


def test_eval_and_chat_take_a_run_directory(road: Path, command: Callable[..., str]) -> None:
    command("eval", "out/merged", "--task", "out/data/sums.yaml", "--out", "again")
    assert (road / "again" / "metrics.json").is_file()
    greedy = ("--temperature", "0", "--max-new-tokens", "30")
    talk = "What is 4+5?\n/no_think\nWhat is 1+2?\n/quit\n"
    assert "9" in command("chat", "out/merged", *greedy, typed=talk)
