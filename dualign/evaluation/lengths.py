"""Curves over lengths of prompts: how much a model still finds and counts in longer ones.

A point is the mean of the forms' scores. The effective length is RULER's (arXiv 2404.06654, section 4):
the longest one up to which the score doesn't fall below 85.6 %, that of Llama-2-7B-chat at 4k.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import MODES, Mode
from dualign.evaluation.config import EvalConfig, EvalStage, limit_of
from dualign.evaluation.scores import Change, mean_of, percent, short_label
from dualign.tasks.base import Task
from dualign.tasks.long.source import ANSWER_TOKENS, LongTask, length_text

THRESHOLD = 0.856
LENGTHS_LEGEND = (
    "Mean of the forms' scores in percent, with 95 % intervals, by the length of prompt and answer in "
    f"tokens. Effective: the longest up to which it is {100 * THRESHOLD:.1f} or more (RULER's bound). "
    "*: the limit of tokens goes beyond the positions that the model was made for."
)
Curve = Mapping[str, Any]


def with_lengths(
    metrics: Mapping[str, Any],
    tasks: Sequence[Task],
    stage: EvalStage,
) -> dict[str, Any]:
    """Return metrics.json with the curves of each model, if tasks have lengths."""
    if not any(isinstance(task, LongTask) for task in tasks):
        return dict(metrics)
    from dualign.evaluation.sizing import window_of  # it brings transformers, and tables do without

    entries = [
        {**entry, "length_curves": _curves(entry, tasks, stage, window_of(model))}
        for entry, model in zip(metrics["all"], stage.models, strict=True)
    ]
    return {**metrics, "all": entries, "length_curves": entries[-1]["length_curves"]}


def _curves(
    entry: Mapping[str, Any],
    tasks: Sequence[Task],
    config: EvalConfig,
    window: int | None,
) -> list[dict[str, Any]]:
    """Return a model's curve for each language and mode of the tasks that have lengths."""
    cells: dict[tuple[str, Mode], dict[int, list[LongTask]]] = {}
    for task in tasks:
        if isinstance(task, LongTask):
            for mode in MODES:
                by_length = cells.setdefault((task.language, mode), defaultdict(list))
                by_length[task.length].append(task)
    curves = []
    for (language, mode), by_length in cells.items():
        points = []
        for length, group in sorted(by_length.items()):
            limit = max(
                limit_of(task, config, mode if entry["mode_switch"] else "think") for task in group
            )
            is_beyond = window is not None and length - ANSWER_TOKENS + limit > window
            point = _point([entry["tasks"][task.name][mode] for task in group])
            forms = {task.form: entry["tasks"][task.name][mode]["accuracy"] for task in group}
            points.append({"length": length, **point, "forms": forms, "beyond": is_beyond})
        curve = {"language": language, "mode": mode, "window": window, "points": points}
        curves.append({**curve, "effective": _effective(points)})
    return curves


def _point(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mean = mean_of([Change.of(cell["accuracy"], cell["accuracy_ci"]) for cell in cells])
    ci = [max(0.0, mean.low), min(1.0, mean.high)]
    return {"score": mean.value, "ci": ci, "n": sum(cell["n"] for cell in cells)}


def _effective(points: Sequence[Mapping[str, Any]]) -> int | None:
    longest = None
    for point in points:
        if point["score"] < THRESHOLD:
            break
        longest = int(point["length"])
    return longest


def curves_of(metrics: Mapping[str, Any]) -> list[tuple[str, Curve]]:
    """Return (model, curve) of all models of a metrics.json."""
    entries = metrics.get("all") or [metrics]
    return [
        (entry["model"], curve) for entry in entries for curve in entry.get("length_curves", ())
    ]


def length_columns(curves: Sequence[tuple[str, Curve]]) -> list[str]:
    """Return the names of the columns: a length each, between the names and the effective length."""
    return ["language", "model", "mode", *map(length_text, _lengths(curves)), "effective"]


def length_rows(curves: Sequence[tuple[str, Curve]]) -> Iterator[list[str]]:
    """Yield the cells of `length_columns` for each language, model and mode."""
    lengths = _lengths(curves)
    languages = dict.fromkeys(curve["language"] for _, curve in curves)
    for language in languages:
        for model, curve in curves:
            if curve["language"] == language:
                points = {point["length"]: point for point in curve["points"]}
                cells = [_cell(points.get(length)) for length in lengths]
                yield [language, short_label(model), curve["mode"], *cells, effective_text(curve)]


def effective_text(curve: Curve) -> str:
    """Return a curve's effective length, or on which side of the lengths asked it lies."""
    first, last = curve["points"][0]["length"], curve["points"][-1]["length"]
    if curve["effective"] is None:
        return f"< {length_text(first)}"
    return ("≥ " if curve["effective"] == last else "") + length_text(curve["effective"])


def _lengths(curves: Sequence[tuple[str, Curve]]) -> list[int]:
    return sorted({point["length"] for _, curve in curves for point in curve["points"]})


def _cell(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "-"
    low, high = point["ci"]
    text = f"{percent(point['score'])} [{percent(low, 0)}, {percent(high, 0)}]"
    return text + (" *" if point["beyond"] else "")
