"""Samples -> the metrics of a task in a mode, and of one model's gain over another.

Each figure is a plain count over the samples; docs/architecture.md lists the keys.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualign.data.conversation import MODES, Mode
from dualign.evaluation.scores import (
    Change,
    mean_interval,
    paired_change,
    ratio_change,
)
from dualign.intervals import wilson

Sample = Mapping[str, Any]
_THINK_RATES = {
    "closed_rate": "closed",
    "empty_think_rate": "empty_think",
    "cut_in_think_rate": "cut_in_think",
}


def summarize(samples: Sequence[Sample], mode: Mode) -> dict[str, Any]:
    """Return the metrics of one task in one mode; the think-block rates are None in no_think."""
    correct = [bool(sample["correct"]) for sample in samples]
    accuracy = _share(correct)
    metrics: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_ci": list(wilson(accuracy, len(correct))),
        "n": len(correct),
        "correct": sum(correct),
        "reasons": _count_reasons(samples),
    }
    metrics |= _rate("leak_rate", [bool(sample["leaked"]) for sample in samples])
    for name, key in _THINK_RATES.items():
        if mode == "think":
            metrics |= _rate(name, [bool(sample[key]) for sample in samples])
        else:
            metrics |= {name: None, f"{name}_ci": None}
    metrics |= _rate("unfinished_rate", [not sample["finished"] for sample in samples])
    for key in ("think_tokens", "answer_tokens"):
        counts = [int(sample[key]) for sample in samples]
        interval = mean_interval(counts)
        metrics[key] = {
            **percentiles(counts),
            "mean_ci": interval and [round(interval.low, 2), round(interval.high, 2)],
        }
    return metrics


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
    earlier = {sample["id"]: bool(sample["correct"]) for sample in before}
    later = {sample["id"]: bool(sample["correct"]) for sample in after}
    assert earlier.keys() == later.keys(), "every model answers every problem in both modes"
    return paired_change(list(earlier.values()), [later[key] for key in earlier])


def thinking_change(before: Sequence[Sample], after: Sequence[Sample]) -> Change | None:
    """Return the relative change of the thinking tokens; None if `before` hardly thinks."""
    later = {sample["id"]: int(sample["think_tokens"]) for sample in after}
    earlier = [int(sample["think_tokens"]) for sample in before]
    return ratio_change(earlier, [later[sample["id"]] for sample in before])


def percentiles(values: Sequence[int]) -> dict[str, float]:
    """Return median, 90th and 99th percentile (interpolated), and mean; zeros without values."""
    if not values:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0, "mean": 0.0}
    p50, p90, p99 = (round(float(p), 2) for p in np.percentile(values, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99, "mean": round(float(np.mean(values)), 2)}


def _rate(name: str, flags: Sequence[bool]) -> dict[str, Any]:
    share = _share(flags)
    return {name: share, f"{name}_ci": list(wilson(share, len(flags)))}


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
