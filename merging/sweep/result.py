"""The result of a sweep: sweep.json, and its findings as sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.scores import Change, percent, short_label
from dualign.merging.sweep.candidates import Candidate, compare, objective_of, pareto_front
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.points import SOUP, Point
from dualign.merging.sweep.search import SearchSummary
from dualign.report.sweep import format_setting

_SCHEMA = 1
_MAX_NAMED = 4  # candidates in one sentence


def point_label(stage: SweepStage, point: Point) -> str:
    """Return `a = 0.9, d = 0.5`; for a soup its models."""
    if SOUP in point:
        names = [short_label(model.model) for model in stage.models]
        return " + ".join(names[i] for i in point[SOUP])
    return ", ".join(f"{name} = {format_setting(value)}" for name, value in point.items())


def progress_line(stage: SweepStage, candidate: Candidate, *, number: int, total: int) -> str:
    """Return a line about a candidate that was scored."""
    head = f"{number}/{total}  {point_label(stage, candidate.point)}"
    score = candidate.score
    if score is None:
        return f"{head}: can't be merged: {candidate.failure}"
    took = "known" if candidate.cached else f"{candidate.seconds:.0f} s"
    if not score.tasks:
        return f"{head}: {score.value:g} ({took})"
    modes = ", ".join(f"{mode} {percent(score.accuracy(mode).value)}" for mode in MODES)
    return f"{head}: {modes}; {stage.objective} {percent(score.value)} ({took})"


def sweep_record(
    stage: SweepStage, candidates: Sequence[Candidate], best: int, search: SearchSummary
) -> dict[str, Any]:
    """Return the content of sweep.json: every candidate, the best, and those that may equal it."""
    front = pareto_front(candidates)
    entries = [
        _entry(stage, candidates, i, best=best, on_front=i in front) for i in range(len(candidates))
    ]
    record = {
        "schema": _SCHEMA,
        "name": stage.name,
        "search": {"kind": stage.search, **search},
        "objective": "command" if stage.command else stage.objective,
        "lower_is_better": stage.best == "lowest",
        "settings": asdict(stage.score) if stage.score else stage.command,
        "models": [model.model for model in stage.models],
        "vary": [*stage.vary],
        "best": best,
        "undecided": [
            i
            for i, entry in enumerate(entries)
            if entry["against"] and entry["against"]["ci"][0] <= 0 <= entry["against"]["ci"][1]
        ],
        "candidates": entries,
    }
    return {**record, "says": _sentences(stage, record)}


def _entry(
    stage: SweepStage, candidates: Sequence[Candidate], index: int, *, best: int, on_front: bool
) -> dict[str, Any]:
    candidate, best_score = candidates[index], candidates[best].score
    score = candidate.score
    entry: dict[str, Any] = {
        "label": point_label(stage, candidate.point),
        "point": dict(candidate.point),
        "value": score.value if score else None,
        "value_ci": None,
        "modes": {},
        "tasks": {},
        "against": None,
        "front": on_front,
        "best": index == best,
        "failed": candidate.failure,
        "cached": candidate.cached,
        "seconds": candidate.seconds,
        "key": candidate.key,
    }
    if score is None or not score.tasks or best_score is None:
        return entry
    entry["value_ci"] = _limits(objective_of(score, stage.objective))
    for mode in MODES:
        accuracy = score.accuracy(mode)
        entry["modes"][mode] = {"accuracy": accuracy.value, "accuracy_ci": _limits(accuracy)}
    entry["modes"]["think"]["closed_rate"] = score.rate("think", "closed_rate")
    entry["modes"]["think"]["cut_in_think_rate"] = score.rate("think", "cut_in_think_rate")
    entry["modes"]["no_think"]["leak_rate"] = score.rate("no_think", "leak_rate")
    entry["tasks"] = score.tasks
    if index != best:
        difference = compare(score, best_score, stage.objective)
        entry["against"] = {"value": difference.value, "ci": _limits(difference)}
    return entry


def _limits(change: Change) -> list[float]:
    return [change.low, change.high]


def sweep_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the winner, for run.json."""
    candidates = record["candidates"]
    best = candidates[record["best"]]
    return {
        "candidates": len(candidates),
        "best": best["point"],
        "value": best["value"],
        "objective": record["objective"],
        "undecided": [candidates[i]["label"] for i in record["undecided"]],
    }


def _sentences(stage: SweepStage, record: Mapping[str, Any]) -> list[str]:
    entries = record["candidates"]
    best = entries[record["best"]]
    if not best["tasks"]:
        sentences = [f"Best: {best['label']}, with {best['value']:g}. One number has no interval."]
    else:
        low, high = best["value_ci"]
        score = f"{percent(best['value'])} [{percent(low, 0)}, {percent(high, 0)}]"
        sentences = [f"Best by {record['objective']}: {best['label']}, {score} %."]
        sentences += _noise_sentences(entries, record["undecided"])
    sentences += _search_sentences(stage, record["search"])
    failures = sum(1 for entry in entries if entry["failed"])
    if failures:
        sentences.append(f"{failures} of {len(entries)} candidates couldn't be merged.")
    if len(entries) > 1 and best["tasks"]:
        sentences.append(
            f"It was chosen among {len(entries)} by these problems, so its score here flatters it: evaluate it on others."
        )
    return sentences


def _noise_sentences(entries: Sequence[Mapping[str, Any]], undecided: Sequence[int]) -> list[str]:
    """Name the candidates whose difference from the best may be noise."""
    others = sum(1 for entry in entries if entry["against"])
    if not others:
        return []
    if not undecided:
        return ["It differs measurably from every other candidate (paired 95 % intervals)."]
    names = [entries[i]["label"] for i in undecided]
    if len(names) == others:
        text = f"any of the other {others}" if others > 1 else names[0]
    else:
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        text = "; ".join(names[:_MAX_NAMED]) + more
    return [f"Not distinguishable from {text} on these problems (paired 95 % intervals)."]


def _search_sentences(stage: SweepStage, search: Mapping[str, Any]) -> list[str]:
    if "interval" in search:
        low, high = search["interval"]
        (name,) = stage.vary
        return [f"If the score has one peak, it is at {name} between {low:.6g} and {high:.6g}."]
    if "soup" in search:
        names = [short_label(model.model) for model in stage.models]
        rest = [names[i] for i in search["order"] if i not in search["soup"]]
        soup = " + ".join(names[i] for i in search["soup"])
        return [f"Greedy soup: {soup}; left out: {', '.join(rest) or 'none'}."]
    return []
