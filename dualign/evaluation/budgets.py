"""Accuracy and tokens at thinking budgets, from one trace for each answer in think mode.

`budgets: [0, 128, none]` adds a request for each number to the whole answer, which is always
measured. Where a trace is no longer than a budget, the whole answer counts there.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dualign.evaluation.config import EvalStage
from dualign.evaluation.following import Response
from dualign.evaluation.metrics import gain
from dualign.evaluation.requests import EvalRequest
from dualign.evaluation.sampled import Sample, by_budget, has_value, mean_share, problem_means
from dualign.generation.answers import AnswerRequest, budgeted
from dualign.generation.budgets import Budget

logger = logging.getLogger(__name__)
_ENOUGH = 0.95  # of the accuracy without a budget


def with_budgets(items: Sequence[EvalRequest], stage: EvalStage) -> tuple[EvalRequest, ...]:
    """Return the requests, followed by those at the stage's budgets; these have no_think's limit for
    their answers. A problem that is asked alike in both modes has none.
    """
    quick = {_name(item): item.answer for item in items if item.mode == "no_think"}
    thinking = [
        item
        for item in items
        if item.mode == "think"
        and item.writes
        and item.answer.prompt.text != quick[_name(item)].prompt.text
    ]
    _warn_of_unreached(thinking, stage)
    cut = (
        _cut(item, Budget(tokens=tokens, closing=stage.budget_closing), quick[_name(item)])
        for tokens in stage.budget_tokens
        for item in thinking
    )
    return (*items, *cut)


def _name(item: EvalRequest) -> tuple[str, str]:
    return item.task.name, item.problem.id


def _warn_of_unreached(thinking: Sequence[EvalRequest], stage: EvalStage) -> None:
    """Say which budgets no trace can reach, since the limit ends the whole answer before."""
    limits = {item.task.name: item.answer.sampling.max_new_tokens for item in thinking}
    for task, limit in limits.items():
        if late := [f"{tokens:,}" for tokens in stage.budget_tokens if tokens >= limit]:
            logger.warning(
                "task %s: no trace reaches a budget of %s, since max_new_tokens ends answers at %s: raise it",
                task, " or ".join(late), f"{limit:,}",
            )  # fmt: skip


def whole_limits(items: Sequence[EvalRequest]) -> dict[str, int]:
    """Return the limit of whole answers of each task that was asked at budgets; problems may have
    limits of their own.
    """
    limits: dict[str, int] = {}
    for item in items:
        if whole := item.answer.whole:
            most = max(limits.get(item.task.name, 0), whole.sampling.max_new_tokens)
            limits[item.task.name] = most
    return limits


def _cut(item: EvalRequest, budget: Budget, quick: AnswerRequest) -> EvalRequest:
    limit = quick.sampling.max_new_tokens
    answer, *more = (budgeted(part, budget, answer_tokens=limit) for part in item.asked)
    return replace(item, answer=answer, more=tuple(more))


def is_own(request: EvalRequest, response: Response) -> bool:
    """Return whether what was given to a request is its own: not at a budget that cut nothing."""
    is_asked = response.answer.budget is not None
    return request.answer.budget is None or is_asked or _cut_elsewhere(request, response)


def budget_keys(request: EvalRequest, response: Response) -> dict[str, Any]:
    """Return the keys of a line at a budget; none of others."""
    if request.answer.budget is None:
        return {}
    closed = response.answer.closed_by_budget or _cut_elsewhere(request, response)
    return {"budget": request.answer.budget.tokens, "closed_by_budget": closed}


def _cut_elsewhere(request: EvalRequest, response: Response) -> bool:
    """Return whether a trace of another prompt or of a repeat was cut."""
    keys = {record.key for record in response.more}
    return any(part.key in keys for part in request.more)


def with_curves(
    metrics: Mapping[str, Mapping[str, dict[str, Any]]],
    samples: Sequence[Sample],
    limits: Mapping[str, int],
    stage: EvalStage,
) -> dict[str, dict[str, Any]]:
    """Return the metrics of a model's tasks with those of its budgets in think mode.

    Args:
        limits: `whole_limits` of the tasks that were asked at budgets.
    """
    results = {name: dict(by_mode) for name, by_mode in metrics.items()}
    for name, limit in limits.items():
        lines = [s for s in samples if (s["task"], s["mode"]) == (name, "think")]
        results[name]["think"] |= _budget_metrics(lines, stage.budget_tokens, limit)
    return results


def _budget_metrics(
    samples: Sequence[Sample], budgets: Sequence[int], limit: int
) -> dict[str, Any]:
    """Return `budgets`, `budget_area`, `budget_95` and `budget_tokens` of a task in think mode.

    The area is that below the accuracy over log2(1 + budget), by trapezoids, divided by its width:
    from 0 to 1, and the same weights for all models. No budget stands at `limit`, the most tokens
    of a whole answer, or above the largest budget.

    Args:
        samples: the lines of a model on the task in think mode, at all budgets.
    """
    groups = by_budget(samples)
    whole = groups[None]
    if not any(map(has_value, whole)):
        return {}
    at_budget = {tokens: _filled(whole, groups.get(tokens, ())) for tokens in sorted(budgets)}
    entries = [_entry(tokens, lines, whole) for tokens, lines in at_budget.items()]
    entries.append(_entry(None, whole, whole))
    full = entries[-1]["accuracy"]
    enough = [entry["budget"] for entry in entries if entry["accuracy"] >= _ENOUGH * full]
    ends = [*at_budget, max(limit, *at_budget)]
    apart = sum(sum(map(_tokens, lines)) for lines in (*at_budget.values(), whole))
    written = sum(map(_tokens, whole)) + sum(
        _tokens(line) if "usage" in line else int(line["answer_tokens"])
        for tokens in at_budget
        for line in groups.get(tokens, ())
    )
    return {
        "budgets": entries,
        "budget_area": _area(ends, [entry["accuracy"] for entry in entries]),
        "budget_95": enough[0] if full else None,
        "budget_tokens": {"written": written, "apart": apart},
    }


def _filled(whole: Sequence[Sample], cut: Sequence[Sample]) -> list[Sample]:
    """Return a line for each whole answer: its own at the budget, else itself."""
    own = {_place(line): line for line in cut}
    return [own.get(_place(line), line) for line in whole]


def _place(line: Sample) -> tuple[Any, int]:
    return line["id"], int(line.get("sample") or 0)


def _entry(tokens: int | None, lines: Sequence[Sample], whole: Sequence[Sample]) -> dict[str, Any]:
    accuracy, interval = mean_share(lines)
    closed = [bool(line.get("closed_by_budget")) for line in lines]
    change = gain(whole, lines)
    return {
        "budget": tokens,
        "accuracy": accuracy,
        "accuracy_ci": interval,
        "n": len(problem_means(lines)),
        "against_none": change.value,
        "against_none_ci": [change.low, change.high],
        "think_tokens": round(_mean(line["think_tokens"] for line in lines), 2),
        "answer_tokens": round(_mean(line["answer_tokens"] for line in lines), 2),
        "closed_by_budget": _mean(closed),
    }


def _area(ends: Sequence[int], heights: Sequence[float]) -> float:
    places = [math.log2(1 + tokens) for tokens in ends]
    width = places[-1] - places[0]
    if not width:
        return heights[-1]
    steps = zip(places, places[1:], heights, heights[1:], strict=False)
    return sum((right - left) * (low + high) / 2 for left, right, low, high in steps) / width


def _mean(values: Iterator[float] | Sequence[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _tokens(line: Sample) -> int:
    return int(line["think_tokens"]) + int(line["answer_tokens"])
