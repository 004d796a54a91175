"""A tiny pipeline that has run: data -> sft (adapter) -> apo (adapter on it) and folded (weights and adapter) -> merged -> eval."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from dualign import engine
from dualign.publish.release import PublishRequest
from dualign.recipe import load_recipe
from tests.pipeline.test_tiny_road import SCRIPT
from tests.processes import once

COMMIT = "a" * 40
TRAIN = {
    "learning_rate": 1e-4,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "logging_steps": 1,
}


def recipe(base: Path) -> dict:
    """Models of the pipeline still know the four sums by heart: they are trained a little."""

    def training(name: str, kind: str, model: str, rows: str, rank: int, **more: object) -> dict:
        data = {"sources": [{"path": f"stage:data/{rows}.jsonl"}], "max_tokens": 256}
        if kind == "preference":
            data["packing"] = "none"
        lora = {"r": rank, "lora_alpha": rank}
        made = {"name": name, "kind": kind, "model": model, "data": data, "lora": lora}
        return {**made, "train": TRAIN, **more}

    return {
        "name": "tiny",
        "output_dir": "out",
        "stages": [
            {"name": "data", "kind": "script", "script": "make.py"},
            training("sft", "sft", str(base), "train", 4),
            training("apo", "preference", "stage:sft", "pairs", 2),
            training("folded", "preference", "stage:sft", "pairs", 2, save="merged", seed=1),
            {
                "name": "merged",
                "kind": "merge",
                "models": [
                    {"model": "stage:apo", "weight": 0.9},
                    {"model": "stage:sft", "weight": 0.1},
                ],
            },
            {
                "name": "eval",
                "kind": "eval",
                "models": [str(base), "stage:sft", "stage:apo", "stage:merged"],
                "tasks": ["stage:data/sums.yaml"],
                "max_new_tokens": 30,
                "budgets": [4],
            },
        ],
    }


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory, learnt: Path) -> Path:
    """The pipeline's output directory. Tests that break something take `copied`."""
    make = partial(run_pipeline, learnt)
    return once(tmp_path_factory, "published-road", make) / "out"


def run_pipeline(learnt: Path, folder: Path) -> None:
    shutil.copytree(learnt, folder / "base")
    (folder / "make.py").write_text(SCRIPT)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder / "base"), sort_keys=False))
    engine.run(
        load_recipe(folder / "recipe.yaml", [f"output_dir={folder / 'out'}"]),
        say=lambda text: None,
    )


@pytest.fixture
def copied(road: Path, tmp_path: Path) -> Path:
    """A copy of the output directory that a test may break."""
    shutil.copytree(road, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="session")
def asked() -> Callable[..., PublishRequest]:
    """A request that lacks nothing, unless the test says otherwise."""

    def ask(run_dir: Path, **more: object) -> PublishRequest:
        defaults = {"bases": (f"acme/base@{COMMIT}",), "license": "apache-2.0"}
        return PublishRequest(run_dir=run_dir, repo_id="someone/tiny", **{**defaults, **more})

    return ask


def edit_json(file: Path, **changes: object) -> None:
    """Set keys at the top of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
