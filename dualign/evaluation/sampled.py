"""Lines of samples.jsonl, by problem: what a problem's answers are worth together.

A line is one answer. With `samples: k` a problem has k of them, which aren't independent: figures
are means over problems, and their intervals take the problems as clusters. A line's value is its
`score` (0 to 1, of a graded metric), else 1 if it is correct and 0 if it isn't.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from dualign.intervals import share_interval

Sample = Mapping[str, Any]


def _value_of(sample: Sample) -> float:
    """Return what an answer is worth, from 0 to 1."""
    score = sample.get("score")
    return float(bool(sample.get("correct")) if score is None else score)


def has_value(sample: Sample) -> bool:
    """Return whether an answer is right or wrong at all: a perplexity is neither."""
    return sample.get("score") is not None or not sample.get("scores")


def by_budget(samples: Sequence[Sample]) -> dict[int | None, list[Sample]]:
    """Return the lines of each thinking budget, those without one under None, which comes first."""
    groups: dict[int | None, list[Sample]] = {None: []}
    for sample in samples:
        groups.setdefault(sample.get("budget"), []).append(sample)
    return groups


def _by_problem(samples: Sequence[Sample]) -> dict[Any, list[Sample]]:
    """Return the answers to each problem, in the order of the problems."""
    problems: dict[Any, list[Sample]] = {}
    for sample in samples:
        problems.setdefault(sample["id"], []).append(sample)
    return problems


def problem_means(
    samples: Sequence[Sample], value: Callable[[Sample], float] = _value_of
) -> dict[Any, float]:
    """Return each problem's mean over its answers."""
    return {id: fmean(map(value, answers)) for id, answers in _by_problem(samples).items()}


def mean_share(
    samples: Sequence[Sample], value: Callable[[Sample], float] = _value_of
) -> tuple[float, list[float]]:
    """Return the mean over problems of a value between 0 and 1, and its 95 % interval."""
    means = list(problem_means(samples, value).values())
    graded = any(value(sample) not in (0, 1) for sample in samples)
    interval = share_interval(means, None if graded else len(samples))
    return (fmean(means) if means else 0.0), list(interval)


def sampled_metrics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return `samples`, `pass_at` and `majority` of several answers to each problem; else nothing."""
    problems = _by_problem(samples)
    count = min(map(len, problems.values()), default=0)
    if count < 2:
        return {}
    metrics: dict[str, Any] = {"samples": count, "pass_at": {}}
    for tries in _tries(count):
        shares = [
            pass_at(len(answers), sum(bool(answer["correct"]) for answer in answers), tries)
            for answers in problems.values()
        ]
        metrics["pass_at"][str(tries)] = _figure(shares, len(samples))
    # Verifiers without a normal form write no votes.
    if any("vote" in sample for sample in samples):
        metrics["majority"] = _figure(list(map(majority, problems.values())), len(samples))
    return metrics


def pass_at(answers: int, right: int, tries: int) -> float:
    """Return the chance that one of `tries` answers is right, without bias.

    1 - C(n - c, k) / C(n, k) for c right ones of n (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    return 1 - math.comb(answers - right, tries) / math.comb(answers, tries)


def majority(answers: Sequence[Sample]) -> float:
    """Return the value of the answer that most of a problem's answers give (Wang et al. 2022).

    Answers are the same if their `vote`, the verifier's normal form, is. One without a vote counts
    for nothing; answers with equally many votes share the result; without votes it is 0.
    """
    votes = Counter(answer["vote"] for answer in answers if answer.get("vote") is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    # A kind of answer is worth the mean of its own: a verifier may see more than the vote.
    winners = [vote for vote, count in votes.items() if count == most]
    return fmean(
        fmean(_value_of(answer) for answer in answers if answer.get("vote") == vote)
        for vote in winners
    )


def _tries(count: int) -> list[int]:
    """Return 1, 2, 4, ... up to the number of answers, which comes last."""
    powers = [2**power for power in range(count.bit_length()) if 2**power < count]
    return [*powers, count]


def _figure(shares: Sequence[float], answers: int) -> dict[str, Any]:
    return {"value": fmean(shares), "ci": list(share_interval(shares, answers))}
