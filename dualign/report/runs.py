"""Run directories read for the report: run.json, log, metrics and samples of each stage."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualign.errors import CheckpointError
from dualign.evaluation.scores import ModelScores, read_scores
from dualign.notebook import html_table
from dualign.rundir import RUN_JSON

Row = Mapping[str, Any]
Series = tuple[tuple[int, float], ...]
_TAIL = 256_000  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRun:
    """A finished stage. `record` is its run.json; `metrics` and `samples` are an evaluation's."""

    path: Path
    name: str
    kind: str
    record: Row = field(repr=False)
    log: tuple[Row, ...] = field(default=(), repr=False)
    metrics: Row | None = field(default=None, repr=False)
    samples: tuple[Row, ...] = field(default=(), repr=False)
    retained: tuple[Row, ...] = field(default=(), repr=False)
    """answers that a training stage was asked for while it trained"""
    sweep: Row | None = field(default=None, repr=False)
    """sweep.json of a sweep stage"""

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows: the figures of run.json."""
        metrics = self.record.get("metrics", {})
        figures = {"kind": self.kind, "folder": self.path, "seconds": self.record.get("seconds")}
        for name, value in metrics.items():
            if isinstance(value, int | float | str):
                figures[name] = f"{value:.4g}" if isinstance(value, float) else value
        return html_table(("", self.name), figures.items(), text_columns=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEvaluation:
    """The scores of an evaluated model, and its generations."""

    scores: ModelScores
    samples: tuple[Row, ...]
    """answers after whole traces"""
    budgeted: tuple[Row, ...] = ()
    """answers after traces that were closed at a budget of tokens"""


def read_stage(path: Path) -> StageRun:
    """Read a run directory.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    record = _read_json(path / RUN_JSON, expected="a finished run directory of `dualign run`")
    for key in ("name", "kind"):
        if key not in record:
            raise CheckpointError(
                f"{path / RUN_JSON}: the key '{key}' is missing. Expected the run.json that a "
                "stage writes; run the stage again."
            )
    metrics_file = path / "metrics.json"
    metrics = _read_json(metrics_file, expected="metrics") if metrics_file.exists() else None
    sweep_file = path / "sweep.json"
    return StageRun(
        path=path,
        name=str(record["name"]),
        kind=str(record["kind"]),
        record=record,
        log=tuple(_read_rows(path / "log.jsonl")),
        metrics=metrics,
        samples=() if metrics is None else tuple(_read_rows(path / "samples.jsonl")),
        retained=tuple(_read_rows(path / "retention.jsonl")),
        sweep=_read_json(sweep_file, expected="a sweep") if sweep_file.exists() else None,
    )


def read_unfinished(work: Path, *, name: str, kind: str) -> StageRun:
    """Read the work folder of a stage that isn't finished, which may be writing there now."""
    retained = work / "retention.json"
    measured = _read_json(retained, expected="retained scores") if retained.is_file() else None
    return StageRun(
        path=work,
        name=name,
        kind=kind,
        record={"metrics": {"retain": measured}} if measured else {},
        log=tuple(_read_rows(work / "log.jsonl", growing=True)),
        retained=tuple(_read_rows(work / "retention.jsonl")),
    )


def latest_rows(file: Path, count: int) -> tuple[Row, ...]:
    """Return the last rows of a file that grows; at most as many, of its last 256 kB."""
    with suppress(FileNotFoundError), file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - _TAIL))
        lines = content.read().split(b"\n")[1 if size > _TAIL else 0 : -1]
        return tuple(json.loads(line) for line in lines[-count:] if line.strip())
    return ()


def read_evaluation(path: Path) -> StageRun:
    """Read the folder of an evaluation; `dualign eval` writes no run.json into it.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if (path / RUN_JSON).is_file():
        return read_stage(path)
    return StageRun(
        path=path,
        name=path.absolute().name,
        kind="eval",
        record={},
        metrics=_read_json(path / "metrics.json", expected="metrics"),
        samples=tuple(_read_rows(path / "samples.jsonl")),
    )


def _read_json(file: Path, *, expected: str) -> Row:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} isn't there. Expected {expected}; run the pipeline to its end, or name other "
            "stages."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} isn't JSON ({error}). Run the stage again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{file} holds a {type(value).__name__}, expected an object. Run the stage again."
        )
    return value


def _read_rows(file: Path, *, growing: bool = False) -> Iterator[Row]:
    """Yield the rows of a file; of one that is growing the last may be there in part, and is left out."""
    if not file.exists():
        return
    # Not splitlines(): a model may write U+2028 and the like, which JSON leaves as they are.
    lines = file.read_text(encoding="utf-8", errors="replace" if growing else "strict").split("\n")
    for number, line in enumerate(lines[:-1] if growing else lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CheckpointError(
                f"{file}:{number} isn't JSON ({error}). Run the stage again."
            ) from None
        if not isinstance(row, dict):
            raise CheckpointError(f"{file}:{number} isn't an object. Run the stage again.")
        yield row


def series(log: Sequence[Row], key: str) -> Series:
    """Return (step, value) of a logged key; of a step logged twice (a resume), the last.

    Values that aren't finite are left out.
    """
    values = {
        int(row["step"]): float(row[key])
        for row in log
        if "step" in row and isinstance(row.get(key), int | float) and math.isfinite(row[key])
    }
    return tuple(sorted(values.items()))


def evaluations_of(stages: Sequence[StageRun]) -> tuple[ModelEvaluation, ...]:
    """Return the models of all evaluation stages, in order; tasks are joined over stages."""
    models: dict[str, ModelEvaluation] = {}
    for stage in stages:
        if stage.metrics is None:
            continue
        for scores in read_scores(stage.metrics, where=str(stage.path / "metrics.json")):
            answers = tuple(_samples_of(stage, stage.metrics, scores.model))
            new = ModelEvaluation(
                scores=scores,
                samples=tuple(row for row in answers if row.get("budget") is None),
                budgeted=tuple(row for row in answers if row.get("budget") is not None),
            )
            earlier = models.get(scores.model)
            if earlier is None:
                models[scores.model] = new
            elif any(task in earlier.scores.tasks for task in scores.tasks):
                # The same task again would overwrite the first result: keep both, apart.
                label = f"{scores.model} ({stage.name})"
                models[label] = replace(new, scores=replace(scores, model=label))
            else:
                models[scores.model] = _joined(earlier, new)
    return tuple(models.values())


def _joined(first: ModelEvaluation, second: ModelEvaluation) -> ModelEvaluation:
    scores = replace(first.scores, tasks={**first.scores.tasks, **second.scores.tasks})
    return ModelEvaluation(
        scores=scores,
        samples=first.samples + second.samples,
        budgeted=first.budgeted + second.budgeted,
    )


def _samples_of(stage: StageRun, metrics: Row, model: str) -> Iterator[Row]:
    last = metrics.get("model")
    return (sample for sample in stage.samples if sample.get("model", last) == model)


def is_training(stage: StageRun) -> bool:
    """True if the stage logged a loss."""
    return bool(series(stage.log, "loss"))


def is_preference(stage: StageRun) -> bool:
    """True if the stage logged rewards, as preference stages do."""
    prefixes = ("rewards/", "eval_rewards/")
    return any(key.startswith(prefixes) for row in stage.log for key in row)


def is_rated(stage: StageRun) -> bool:
    """True if the stage was trained on answers that are good or bad, without partners."""
    return "desirable" in (stage.record.get("rows") or {})
