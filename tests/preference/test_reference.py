"""`reference: cached`: the log-probabilities are computed once for all runs with the same pairs and weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dualign import engine
from dualign.recipe import load_recipe
from tests.chat_model import LEARNT, make_model, make_tokenizer

Run = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUALIGN_TOKENS", str(tmp_path / "tokens"))
    return tmp_path / "tokens"


@pytest.fixture
def run(tmp_path: Path, cache: Path) -> Run:
    """`run("out", "train.beta=0.5")` -> the finished stage."""
    tokenizer = make_tokenizer()
    make_model(tokenizer, width=16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": right}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "mode": "no_think",
        }
        for question, (_, right, _) in LEARNT.items()
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "kind": "preference",
        "model": "base",
        "reference": "cached",
        "lora": {"r": 2},
        "data": {"sources": [{"path": "pairs.jsonl"}], "packing": "none", "validation_rows": 1},
        "train": {"max_steps": 2, "learning_rate": 1e-2, "gradient_checkpointing": False},
        "verify_reload": False,
        "output_dir": "out",
    }
    (tmp_path / "apo.yaml").write_text(json.dumps(stage))

    def run(out: str, *overrides: str) -> Path:
        recipe = load_recipe(tmp_path / "apo.yaml", [f"output_dir={tmp_path / out}", *overrides])
        return engine.run(recipe, say=lambda line: None)[0]

    return run


def references(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("cache-*.arrow")}


def test_runs_with_other_losses_share_them(run: Run, cache: Path) -> None:
    """Where they come from leaves the masks of dropout as they are."""
    dropout = ("lora.lora_dropout=0.5", "train.disable_dropout=false")
    run("first", *dropout)
    first = references(cache)
    assert len(first) == 2, "of the pairs that are trained on, and of the held-out ones"
    shared = run(
        "second", "train.beta=0.5", "train.loss_type=sigmoid", "train.learning_rate=1e-3", *dropout
    )
    assert references(cache) == first
    alone = run(
        "third", "train.beta=0.5", "train.loss_type=sigmoid", "train.learning_rate=1e-3",
        "data.cache=false", *dropout,
    )  # fmt: skip
    assert references(cache) == first, "pairs that aren't cached keep them in the work folder"
    name = "adapter_model.safetensors"
    assert (shared / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize("change", ["seed=7", "train.per_device_train_batch_size=2"])
def test_what_changes_them_computes_them_again(run: Run, cache: Path, change: str) -> None:
    run("first")
    first = references(cache)
    run("second", change)
    assert len(references(cache)) == 2 * len(first)
