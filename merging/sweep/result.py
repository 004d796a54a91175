"""What a sweep found, as sweep.json says it and in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.scores import Change, percent, short_label
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.points import SOUP, Point
from dualign.merging.sweep.scored import Candidate, compare, front, objective_of
from dualign.merging.sweep.search import Found
from dualign.report.sweep import format_setting

SCHEMA = 1
_NAMED = 4  # candidates that a sentence names one by one


def label(stage: SweepStage, point: Point) -> str:
    """`a = 0.9, d = 0.5`; of a soup its models."""
    if SOUP in point:
        names = [short_label(one.model) for one in stage.models]
        return " + ".join(names[place] for place in point[SOUP])
    return ", ".join(f"{name} = {format_setting(value)}" for name, value in point.items())


def line(stage: SweepStage, one: Candidate, *, number: int, of: int) -> str:
    """One candidate in one line, as it is done."""
    head = f"{number}/{of}  {label(stage, one.point)}"
    if one.scored is None:
        return f"{head}: can't be merged: {one.failed}"
    took = "known" if one.cached else f"{one.seconds:.0f} s"
    if not one.scored.tasks:
        return f"{head}: {one.scored.value:g} ({took})"
    modes = ", ".join(f"{mode} {percent(one.scored.mode(mode).value)}" for mode in MODES)
    return f"{head}: {modes}; {stage.objective} {percent(one.scored.value)} ({took})"


def summary(
    stage: SweepStage, candidates: Sequence[Candidate], best: int, found: Found
) -> dict[str, Any]:
    """sweep.json: every candidate with its scores, which is best, and what can't be told apart from it."""
    on_front = front(candidates)
    entries = [
        _entry(stage, candidates, place, best=best, on_front=place in on_front)
        for place in range(len(candidates))
    ]
    whole = {
        "schema": SCHEMA,
        "name": stage.name,
        "search": {"kind": stage.search, **found},
        "objective": "command" if stage.command else stage.objective,
        "lower_is_better": stage.best == "lowest",
        "settings": asdict(stage.score) if stage.score else stage.command,
        "models": [one.model for one in stage.models],
        "vary": [*stage.vary],
        "best": best,
        "undecided": [
            place
            for place, one in enumerate(entries)
            if one["against"] and one["against"]["ci"][0] <= 0 <= one["against"]["ci"][1]
        ],
        "candidates": entries,
    }
    return {**whole, "says": _sentences(stage, whole)}


def _entry(
    stage: SweepStage, candidates: Sequence[Candidate], place: int, *, best: int, on_front: bool
) -> dict[str, Any]:
    one, chosen = candidates[place], candidates[best].scored
    found: dict[str, Any] = {
        "label": label(stage, one.point),
        "point": dict(one.point),
        "value": one.scored.value if one.scored else None,
        "value_ci": None,
        "modes": {},
        "tasks": {},
        "against": None,
        "front": on_front,
        "best": place == best,
        "failed": one.failed,
        "cached": one.cached,
        "seconds": one.seconds,
        "key": one.key,
    }
    if one.scored is None or not one.scored.tasks or chosen is None:
        return found
    found["value_ci"] = _limits(objective_of(one.scored, stage.objective))
    for mode in MODES:
        score = one.scored.mode(mode)
        found["modes"][mode] = {"accuracy": score.value, "accuracy_ci": _limits(score)}
    found["modes"]["think"]["closed_rate"] = one.scored.rate("think", "closed_rate")
    found["modes"]["think"]["cut_in_think_rate"] = one.scored.rate("think", "cut_in_think_rate")
    found["modes"]["no_think"]["leak_rate"] = one.scored.rate("no_think", "leak_rate")
    found["tasks"] = one.scored.tasks
    if place != best:
        less = compare(one.scored, chosen, stage.objective)
        found["against"] = {"value": less.value, "ci": _limits(less)}
    return found


def _limits(change: Change) -> list[float]:
    return [change.low, change.high]


def metrics(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The winner, for run.json."""
    best = whole["candidates"][whole["best"]]
    return {
        "candidates": len(whole["candidates"]),
        "best": best["point"],
        "value": best["value"],
        "objective": whole["objective"],
        "undecided": [whole["candidates"][place]["label"] for place in whole["undecided"]],
    }


def _sentences(stage: SweepStage, whole: Mapping[str, Any]) -> list[str]:
    entries = whole["candidates"]
    best = entries[whole["best"]]
    if not best["tasks"]:
        found = [f"Best: {best['label']}, with {best['value']:g}. One number has no interval."]
    else:
        low, high = best["value_ci"]
        score = f"{percent(best['value'])} [{percent(low, 0)}, {percent(high, 0)}]"
        found = [f"Best by {whole['objective']}: {best['label']}, {score} %."]
        found += _noise(entries, whole["undecided"])
    found += _search_sentences(stage, whole["search"])
    failed = sum(1 for one in entries if one["failed"])
    if failed:
        found.append(f"{failed} of {len(entries)} candidates couldn't be merged.")
    if len(entries) > 1 and best["tasks"]:
        found.append(
            f"It was chosen among {len(entries)} by these problems, so its score here flatters it: evaluate it on others."
        )
    return found


def _noise(entries: Sequence[Mapping[str, Any]], undecided: Sequence[int]) -> list[str]:
    others = sum(1 for one in entries if one["against"])
    if not others:
        return []
    if not undecided:
        return ["It differs measurably from every other candidate (paired 95 % intervals)."]
    names = [entries[place]["label"] for place in undecided]
    if len(names) == others:
        text = f"any of the other {others}" if others > 1 else names[0]
    else:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = "; ".join(names[:_NAMED]) + more
    return [f"Not distinguishable from {text} on these problems (paired 95 % intervals)."]


def _search_sentences(stage: SweepStage, search: Mapping[str, Any]) -> list[str]:
    if "interval" in search:
        low, high = search["interval"]
        (name,) = stage.vary
        return [f"If the score has one peak, it is at {name} between {low:.6g} and {high:.6g}."]
    if "soup" in search:
        names = [short_label(one.model) for one in stage.models]
        out = [names[place] for place in search["order"] if place not in search["soup"]]
        within = " + ".join(names[place] for place in search["soup"])
        return [f"Greedy soup: {within}; left out: {', '.join(out) or 'none'}."]
    return []
