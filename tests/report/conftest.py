"""Run directories of a made-up pipeline, written as the stages write them."""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualign.intervals import wilson

Record = dict[str, Any]
PROBLEMS = 120
# The chance of a right answer at the lowest difficulty: (think, no_think).
SKILL = {
    "base": {"sums": (0.10, 0.12), "cups": (0.30, 0.30), "letters": (0.25, 0.27)},
    "sft": {"sums": (0.88, 0.35), "cups": (0.85, 0.45), "letters": (0.60, 0.50)},
    "apo": {"sums": (0.95, 0.35), "cups": (0.97, 0.48), "letters": (0.62, 0.50)},
    "merged": {"sums": (0.94, 0.36), "cups": (0.97, 0.47), "letters": (0.60, 0.51)},
}
ATTACK = "<script>alert('x')</script> | a `pipe` & **stars**\nsecond line </pre></article>"


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All stages of the made-up pipeline, in order."""
    return fabricate(tmp_path_factory.mktemp("pipeline"))


def fabricate(folder: Path) -> list[Path]:
    """Writes the run directories; the same numbers each time."""
    rng = random.Random(3)
    return [
        write_stage(folder, "data", "script", seconds=4.2, peak_rss_mb=310),
        write_stage(
            folder, "sft", "sft", seconds=271, rows=_rows(), log=_sft_log(rng), checks=_checks()
        ),
        write_stage(folder, "pairs", "pairs", parents=("sft",), seconds=65, peak_rss_mb=2900),
        write_stage(
            folder, "apo", "preference", parents=("sft", "pairs"), seconds=402, log=_apo_log(rng)
        ),
        write_stage(folder, "merged", "merge", parents=("apo", "sft"), seconds=6, peak_rss_mb=1400),
        _evaluation(folder, rng),
    ]


def write_stage(
    folder: Path,
    name: str,
    kind: str,
    *,
    log: Sequence[Mapping[str, Any]] = (),
    parents: Sequence[str] = (),
    **fields: object,
) -> Path:
    """One run directory. `fields` go into run.json."""
    path = folder / name
    path.mkdir(parents=True)
    record = {
        "schema": 1,
        "name": name,
        "kind": kind,
        "fingerprint": f"{name}-0123456789abcdef0123456789abcdef",
        "seed": 17,
        "config": {
            "name": name,
            "kind": kind,
            "model": _model_of(parents),
            "train": {"learning_rate": 1e-3},
        },
        "parents": {parent: f"{parent}-0123" for parent in parents},
        "data": [{"source": "rows.jsonl", "sha256": "ab" * 32, "rows": 1200}]
        if kind == "sft"
        else [],
        "rows": None,
        "metrics": {},
        "checks": {},
        "versions": {"python": "3.11.2", "torch": "2.13.0", "trl": "1.16.0"},
        "seconds": 10.0,
        "peak_rss_mb": 3400.0,
        "started": "2026-03-01T10:00:00+00:00",
        "resumed": 1 if name == "apo" else 0,
    }
    (path / "run.json").write_text(json.dumps(record | fields), encoding="utf-8")
    if log:
        write_rows(path / "log.jsonl", log)
    return path


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_evaluation(
    folder: Path,
    name: str,
    models: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """An evaluation stage; with several models the last is at the top, as the stage writes it."""
    path = write_stage(folder, name, "eval")
    metrics = {**models[-1], **({"all": models} if len(models) > 1 else {})}
    (path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_rows(path / "samples.jsonl", samples)
    return path


def cell(right: int, n: int, **fields: object) -> Record:
    """One task in one mode: `right` of `n`."""
    return {"accuracy": right / n, "accuracy_ci": wilson(right / n, n), "n": n, **fields}


def _model_of(parents: Sequence[str]) -> str:
    return f"stage:{parents[0]}" if parents else "embedded:smollm2-135m-instruct"


def _checks() -> Record:
    return {"merged_logits_max_difference": 3.1e-5, "tied_embeddings": "kept"}


def _rows() -> Record:
    by = [
        _source("number-sums", "think", 400, {"longer than 512 tokens": 12}, 102.5),
        _source("number-sums", "no_think", 400, {}, 41.2),
        _source(
            "chat, everyday | plain", "no_think", 200, {"empty answer": 3, "duplicate": 7}, 188.0
        ),
    ]
    dropped: dict[str, int] = {}
    for entry in by:
        dropped |= entry["dropped"]
    return {"in": 1000, "kept": sum(e["kept"] for e in by), "dropped": dropped, "by": by}


def _source(source: str, mode: str, count: int, dropped: dict[str, int], mean: float) -> Record:
    kept = count - sum(dropped.values())
    tokens = round(kept * mean)
    sizes = {
        "tokens": tokens,
        "supervised_tokens": tokens // 2,
        "mean_tokens": mean,
        "max_tokens": 498,
    }
    return {"source": source, "mode": mode, "in": count, "kept": kept, "dropped": dropped, **sizes}


def _sft_log(rng: random.Random) -> list[Record]:
    log: list[Record] = []
    for step in range(2, 122, 2):
        think = 0.35 + 1.3 * math.exp(-step / 18) + rng.gauss(0, 0.03)
        plain = 0.9 + 1.1 * math.exp(-step / 30) + rng.gauss(0, 0.06)
        losses = {"loss": (think + plain) / 2, "loss/think": think, "loss/no_think": plain}
        log.append(
            {"step": step, **losses, "loss/source/number-sums": think, "learning_rate": 1e-3}
        )
        if step % 30 == 0:
            log.append(
                {"step": step, **{f"eval_{key}": value + 0.05 for key, value in losses.items()}}
            )
    return [*log, {"step": 120, "train_runtime": 270.0, "train_loss": 0.8}]


def _apo_log(rng: random.Random) -> list[Record]:
    log: list[Record] = []
    for step in range(1, 41):
        row: Record = {
            "step": step,
            "loss": 1.0 - 0.5 * (1 - math.exp(-step / 15)) + rng.gauss(0, 0.02),
        }
        for mode, size in (("think", 0.9), ("no_think", 0.5)):
            margin = size * (1 - math.exp(-step / 12))
            row[f"rewards/chosen/{mode}"] = margin * 0.6 + rng.gauss(0, 0.03)
            row[f"rewards/rejected/{mode}"] = -margin * 0.4 + rng.gauss(0, 0.03)
            row[f"rewards/margins/{mode}"] = margin
            row[f"rewards/accuracies/{mode}"] = min(1.0, 0.5 + margin * 0.55)
        log.append(row)
        if step % 10 == 0:
            log.append(
                {key if key == "step" else f"eval_{key}": value for key, value in row.items()}
            )
    return log


def _evaluation(folder: Path, rng: random.Random) -> Path:
    samples = [
        _sample(rng, model, task, mode, number)
        for model, tasks in SKILL.items()
        for task in tasks
        for mode in ("think", "no_think")
        for number in range(PROBLEMS)
    ]
    models = [
        {"model": model, "tasks": {task: _cells(samples, model, task) for task in tasks}}
        for model, tasks in SKILL.items()
    ]
    return write_evaluation(folder, "test", models, samples)


def _sample(rng: random.Random, model: str, task: str, mode: str, number: int) -> Record:
    level = 2 + 2 * (number % 4)
    skill = SKILL[model][task][mode == "no_think"] * (
        1 - 0.09 * (level - 2) * (1 if mode == "think" else 1.6)
    )
    digits = random.Random(f"{task}-{number}")  # the same problem for each model and mode
    numbers = [digits.randint(1, 99) for _ in range(level)]
    correct = rng.random() < skill
    trained = mode == "think" and model != "base"
    tokens = max(4, round(rng.gauss(12 * level, 6))) if trained else 0
    said = sum(numbers) if correct else sum(numbers) + rng.choice((-10, 1, 9))
    return {
        "model": model,
        "task": task,
        "mode": mode,
        "id": f"{task}-{number}",
        "difficulty": level,
        "prompt": f"Add these numbers: {', '.join(map(str, numbers))}.",
        "thinking": "\n".join(f"{sum(numbers[:i])} + {n}" for i, n in enumerate(numbers))
        if tokens
        else "",
        "answer": ATTACK if number == 5 else f"The sum is {said}.",
        "expected": str(sum(numbers)),
        "correct": correct and number != 5,
        "think_tokens": tokens,
        "answer_tokens": 7,
    }


def _cells(samples: Sequence[Record], model: str, task: str) -> Record:
    found = {}
    for mode in ("think", "no_think"):
        mine = [s for s in samples if (s["model"], s["task"], s["mode"]) == (model, task, mode)]
        lengths = sorted(sample["think_tokens"] for sample in mine)
        think = {
            "closed_rate": 0.0 if model == "base" else 0.992,
            "empty_think_rate": 0.0,
            "cut_in_think_rate": 0.008,
        }
        found[mode] = cell(
            sum(sample["correct"] for sample in mine),
            len(mine),
            leak_rate=0.004 if mode == "no_think" and model == "sft" else 0.0,
            think_tokens={"p50": statistics.median(lengths), "p90": lengths[-len(lengths) // 10]},
            answer_tokens={"p50": 7, "p90": 9},
            **(think if mode == "think" else {}),
        )
    return found
