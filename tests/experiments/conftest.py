"""A recipe that runs in seconds: pairs by a script, APO on the tiny model that knows four sums, its evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chat_model import LEARNT

SCRIPT = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path); parser.add_argument("--seed", type=int)
parser.add_argument("--sums", type=json.loads)
arguments = parser.parse_args()
with (arguments.out / "pairs.jsonl").open("w") as file:
    for question, (thought, right) in list(arguments.sums.items()) * 3:
        for mode in ("think", "no_think"):
            trace = {"reasoning_content": thought} if mode == "think" else {}
            chosen, rejected = ({"role": "assistant", "content": text, **trace} for text in (right, "0"))
            prompt = [{"role": "user", "content": f"What is {question}?"}]
            row = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected], "mode": mode}
            file.write(json.dumps(row) + "\\n")
"""
TRAIN = {
    "max_steps": 6,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "disable_dropout": False,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def recipe(model: Path, task: Path) -> dict[str, Any]:
    """The stages data, apo and eval."""
    sums = {question: [thought, right] for question, (thought, right, _) in LEARNT.items()}
    data = {
        "sources": [{"path": "stage:data/pairs.jsonl"}],
        "validation_rows": 4,
        "max_tokens": 256,
        "packing": "none",
    }
    apo = {"name": "apo", "kind": "preference", "model": str(model), "data": data, "train": TRAIN}
    evaluation = {"models": [str(model), "stage:apo"], "tasks": [str(task)], "max_new_tokens": 30}
    return {
        "name": "tiny",
        "seed": 3,
        "output_dir": "alone",
        "stages": [
            {
                "name": "data",
                "kind": "script",
                "script": "make.py",
                "args": {"sums": json.dumps(sums)},
            },
            {**apo, "lora": {"r": 2, "lora_dropout": 0.1}},
            {"name": "eval", "kind": "eval", **evaluation},
        ],
    }


def write_experiment(folder: Path, model: Path, task: Path, **keys: Any) -> Path:
    """Write recipe.yaml and search.yaml into the folder; returns the latter."""
    (folder / "make.py").write_text(SCRIPT)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(model, task), sort_keys=False))
    file = folder / "search.yaml"
    content = {"recipe": "recipe.yaml", "output_dir": str(folder / "out"), **keys}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(grid={...})` -> the file of an experiment that can be read and planned, but not run."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "sums.jsonl").write_text('{"id": "1", "prompt": "1+2", "answer": "3"}\n')
    task = tmp_path / "sums.yaml"
    task.write_text("name: sums\nrows: sums.jsonl\nverifier: integer\n")
    return lambda **keys: write_experiment(tmp_path, model, task, **keys)
