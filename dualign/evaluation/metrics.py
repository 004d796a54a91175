"""Samples -> the metrics of a task in a mode, and of one model's gain over another.

Each figure is a mean over problems of plain counts over their answers; docs/architecture.md lists
the keys.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from dualign.data.conversation import MODES, Mode
from dualign.evaluation.languages import count_languages
from dualign.evaluation.sampled import Sample, mean_share, problem_means, sampled_metrics
from dualign.evaluation.scores import (
    Change,
    mean_interval,
    paired_change,
    ratio_change,
)
from dualign.evaluation.significance import (
    difference_variance,
    independent_variance,
    problems_needed,
    sign_flip_p,
)
from dualign.intervals import share_interval

_THINK_RATES = {
    "closed_rate": "closed",
    "empty_think_rate": "empty_think",
    "cut_in_think_rate": "cut_in_think",
}


def summarize(samples: Sequence[Sample], mode: Mode) -> dict[str, Any]:
    """Return the metrics of one task in one mode; the think-block rates are None in no_think.

    `samples` are those of one budget (`by_budget`): a problem may have several answers.
    """
    accuracy, interval = mean_share(samples)
    values = list(problem_means(samples).values())
    metrics: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_ci": interval,
        "n": len(values),
        "correct": sum(bool(sample["correct"]) for sample in samples),
        "reasons": _count_reasons(samples),
    }
    metrics |= _rate("leak_rate", samples, "leaked")
    for name, key in _THINK_RATES.items():
        if mode == "think":
            metrics |= _rate(name, samples, key)
        else:
            metrics |= {name: None, f"{name}_ci": None}
    metrics |= _rate("unfinished_rate", samples, "finished", counted=False)
    for key in ("think_tokens", "answer_tokens"):
        metrics[key] = _lengths(samples, key)
    metrics |= sampled_metrics(samples)
    if named := _named_metrics(samples):
        metrics["metrics"] = named
    if languages := count_languages(samples):
        metrics["languages"] = languages
    return metrics | {"problems_needed": problems_needed(independent_variance(values))}


def _lengths(samples: Sequence[Sample], key: str) -> dict[str, Any]:
    interval = mean_interval(list(problem_means(samples, lambda sample: sample[key]).values()))
    return {
        **percentiles([int(sample[key]) for sample in samples]),
        "mean_ci": interval and [round(interval.low, 2), round(interval.high, 2)],
    }


def _named_metrics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the mean of each further metric of a harness, over the problems that have it.

    Values that aren't numbers have a mean of the harness's own.
    """
    names = dict.fromkeys(
        name
        for sample in samples
        for name, value in (sample.get("scores") or {}).items()
        if isinstance(value, int | float)
    )
    return {name: _named_metric(samples, name) for name in names}


def _named_metric(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    scored = [sample for sample in samples if name in (sample.get("scores") or {})]
    values = list(problem_means(scored, lambda sample: float(sample["scores"][name])).values())
    if all(0 <= value <= 1 for value in values):
        return {"value": fmean(values), "ci": list(share_interval(values))}
    mean = mean_interval(values)
    return {"value": fmean(values), "ci": mean and [mean.low, mean.high]}


def clustered(
    figures: Mapping[str, Mapping[str, Any]], means: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a harness's figures of several answers to each problem, with intervals of `means`.

    A harness takes the answers as independent. What is no mean over problems keeps its value alone.
    """
    results = {}
    for name, figure in figures.items():
        value = figure["value"]
        is_number = name in means and isinstance(value, int | float)
        is_mean = is_number and math.isclose(value, means[name]["value"], abs_tol=1e-9)
        results[name] = {"value": value, "ci": means[name]["ci"] if is_mean else None}
    return results


def _count_reasons(samples: Sequence[Sample]) -> dict[str, int]:
    """Return how often each reason made an answer wrong, the most frequent first."""
    reasons = (sample.get("reason") for sample in samples if not sample["correct"])
    return dict(Counter(reason for reason in reasons if reason).most_common())


def with_gain(tasks: Mapping[str, Mapping[Mode, Sequence[Sample]]]) -> dict[str, dict[str, Any]]:
    """Return the metrics of every task in both modes; think's also hold its gain over no_think."""
    metrics: dict[str, dict[str, Any]] = {}
    for task, by_mode in tasks.items():
        metrics[task] = {mode: summarize(by_mode[mode], mode) for mode in MODES}
        change = gain(by_mode["no_think"], by_mode["think"])
        metrics[task]["think"] |= {"gain": change.value, "gain_ci": [change.low, change.high]}
    return metrics


def gain(before: Sequence[Sample], after: Sequence[Sample]) -> Change:
    """Return the paired change from `before` to `after`, samples on the same problems."""
    return paired_change(*_paired_values(before, after))


def compare(before: Sequence[Sample], after: Sequence[Sample]) -> dict[str, Any]:
    """Return the entry of `changes` for one task in one mode: `after` less `before`, paired."""
    earlier, later = _paired_values(before, after)
    differences = [new - old for old, new in zip(earlier, later, strict=True)]
    change, lengths = paired_change(earlier, later), thinking_change(before, after)
    return {
        "value": change.value,
        "ci": [change.low, change.high],
        "p": sign_flip_p(differences),
        "problems_needed": problems_needed(difference_variance(differences)),
        "think_tokens": lengths and {"value": lengths.value, "ci": [lengths.low, lengths.high]},
    }


def _paired_values(
    before: Sequence[Sample], after: Sequence[Sample]
) -> tuple[list[float], list[float]]:
    """Return what the same problems are worth on both sides, each the mean of its answers."""
    earlier, later = problem_means(before), problem_means(after)
    assert earlier.keys() == later.keys(), "every model answers every problem in both modes"
    return list(earlier.values()), [later[key] for key in earlier]


def thinking_change(before: Sequence[Sample], after: Sequence[Sample]) -> Change | None:
    """Return the relative change of the thinking tokens; None if `before` hardly thinks."""
    earlier, later = (
        problem_means(samples, lambda sample: int(sample["think_tokens"]))
        for samples in (before, after)
    )
    return ratio_change(list(earlier.values()), [later[key] for key in earlier])


def percentiles(values: Sequence[int]) -> dict[str, float]:
    """Return median, 90th and 99th percentile (interpolated), and mean; zeros without values."""
    if not values:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0, "mean": 0.0}
    p50, p90, p99 = (round(float(p), 2) for p in np.percentile(values, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99, "mean": round(float(np.mean(values)), 2)}


def _rate(
    name: str, samples: Sequence[Sample], flag: str, *, counted: bool = True
) -> dict[str, Any]:
    share, interval = mean_share(samples, lambda sample: float(bool(sample[flag]) is counted))
    return {name: share, f"{name}_ci": interval}
