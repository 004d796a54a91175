"""The table of a suite: its benchmarks in both modes, beside what a model card says."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import Mode
from dualign.evaluation.scores import (
    Change,
    ModelScores,
    Score,
    mean_of,
    read_scores,
    score_text,
    short_label,
)
from dualign.tasks.suites import suite_notes

_MODES: tuple[Mode, ...] = ("no_think", "think")


def suite_columns(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns; those of published figures only where there are some."""
    modes = [
        [f"{mode} [95 %]", *([f"{mode}, published"] if _is_published(metrics) else [])]
        for mode in _MODES
    ]
    return ("benchmark", "model", *(column for columns in modes for column in columns))


def suite_rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of `suite_columns` for each benchmark and model; one that isn't asked says so."""
    for benchmark in (metrics.get("suite") or {}).get("benchmarks", ()):
        for model in read_scores(metrics, where="metrics.json"):
            cells = []
            for mode in _MODES:
                score = _mean_score(model, benchmark["tasks"], mode)
                cells.append("not asked" if "skipped" in benchmark else score_text(score))
                if _is_published(metrics):
                    figure = benchmark.get("published", {}).get(mode)
                    cells.append("-" if figure is None else f"{figure:.1f}")
            yield [benchmark["name"], short_label(model.model), *cells]


def suite_legend(metrics: Mapping[str, Any]) -> str:
    """Return what stands below the table."""
    notes = " ".join(suite_notes(metrics["suite"]))
    return f"In percent; a benchmark of several tasks has their mean. {notes}".strip()


def _is_published(metrics: Mapping[str, Any]) -> bool:
    return any("published" in benchmark for benchmark in metrics["suite"]["benchmarks"])


def _mean_score(model: ModelScores, tasks: Sequence[str], mode: Mode) -> Score | None:
    """Return the mean accuracy of a benchmark's tasks, each of the same weight."""
    scores = [score for task in tasks if (score := model.score(task, mode)) is not None]
    if not scores or len(scores) < len(tasks):
        return None
    if len(scores) == 1:
        return scores[0]
    mean = mean_of([Change(value=s.accuracy, low=s.low, high=s.high) for s in scores])
    return Score(
        accuracy=mean.value,
        low=max(0.0, mean.low),
        high=min(1.0, mean.high),
        n=sum(score.n for score in scores),
    )
