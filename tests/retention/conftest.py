"""Recipes that train a model which knows four sums, and ask for them in between."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dualign import engine
from dualign.recipe import load_recipe
from tests.chat_model import LEARNT

TRAIN = {
    "max_steps": 4,
    "learning_rate": 3e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
LORA = {"r": 4, "lora_dropout": 0.2}

Keys = Mapping[str, Any]
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def other_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and pairs of a family that has nothing to do with sums: the model forgets them."""
    folder = tmp_path_factory.mktemp("other")
    rows, pairs = [], []
    for number in range(12):
        mode = "think" if number % 2 else "no_think"
        trace = {"reasoning_content": "a word"} if mode == "think" else {}
        user = {"role": "user", "content": f"Say word {number}."}
        right = {"role": "assistant", "content": f"word{number}", **trace}
        rows.append({"messages": [user, right], "mode": mode})
        wrong = {**right, "content": "no"}
        pairs.append({"prompt": [user], "chosen": [right], "rejected": [wrong], "mode": mode})
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


@pytest.fixture
def write(tmp_path: Path, learnt: Path, other_rows: Path, task_file: Path) -> Write:
    """Writes a recipe of one stage; `keys` of the stage."""

    def write_recipe(
        name: str, *, kind: str = "sft", train: Keys | None = None, **keys: Any
    ) -> Path:
        rows = "pairs" if kind == "preference" else "rows"
        data = {"sources": [{"path": str(other_rows / f"{rows}.jsonl")}], "packing": "none"}
        stage = {
            "name": kind,
            "kind": kind,
            "model": str(learnt),
            "data": {**data, "max_tokens": 256},
            "train": {**TRAIN, **(train or {})},
            **keys,
        }
        path = tmp_path / f"{name}.yaml"
        out = str(tmp_path / name)
        path.write_text(json.dumps({"output_dir": out, "seed": 3, "stages": [stage]}))
        return path

    return write_recipe


def run(recipe: Path, *overrides: str) -> Path:
    """Run a recipe of one stage; returns its run directory."""
    return engine.run(load_recipe(recipe, overrides), say=lambda text: None)[-1]


def retain(task_file: Path, **keys: Any) -> dict[str, Any]:
    return {"tasks": [str(task_file)], "max_new_tokens": 30, **keys}


def weights(run_dir: Path) -> bytes:
    names = ("adapter_model.safetensors", "model.safetensors")
    return next(path for name in names if (path := run_dir / name).is_file()).read_bytes()


def right_at_start() -> dict[str, float]:
    """Accuracy of the start model in each mode."""
    answers = {"think": 1, "no_think": 2}
    return {
        mode: sum(said[place] == said[1] for said in LEARNT.values()) / len(LEARNT)
        for mode, place in answers.items()
    }
