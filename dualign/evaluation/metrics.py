"""Samples -> what metrics.json says of a task in a mode, and of a model's gain on another.

Each figure is a plain count over the samples; docs/architecture.md lists the keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualign.data.conversation import MODES, Mode
from dualign.evaluation.paired import paired_change
from dualign.evaluation.scores import Change, wilson

Sample = Mapping[str, Any]
THINK_RATES = {
    "closed_rate": "closed",
    "empty_think_rate": "empty_think",
    "cut_in_think_rate": "cut_in_think",
}


def summarise(samples: Sequence[Sample], mode: Mode) -> dict[str, Any]:
    """One task in one mode. `THINK_RATES` are None in no_think, where no block is asked for."""
    correct = [bool(sample["correct"]) for sample in samples]
    accuracy = _share(correct)
    found: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_ci": list(wilson(accuracy, len(correct))),
        "n": len(correct),
        "correct": sum(correct),
    }
    found |= _rate("leak_rate", [bool(sample["leaked"]) for sample in samples])
    for name, key in THINK_RATES.items():
        if mode == "think":
            found |= _rate(name, [bool(sample[key]) for sample in samples])
        else:
            found |= {name: None, f"{name}_ci": None}
    found |= _rate("unfinished_rate", [not sample["finished"] for sample in samples])
    for key in ("think_tokens", "answer_tokens"):
        found[key] = percentiles([int(sample[key]) for sample in samples])
    return found


def with_gain(tasks: Mapping[str, Mapping[Mode, Sequence[Sample]]]) -> dict[str, dict[str, Any]]:
    """Every task in both modes; think's part also says what thinking gained, problem by problem."""
    found: dict[str, dict[str, Any]] = {}
    for task, by_mode in tasks.items():
        found[task] = {mode: summarise(by_mode[mode], mode) for mode in MODES}
        gained = gain(by_mode["no_think"], by_mode["think"])
        found[task]["think"] |= {"gain": gained.value, "gain_ci": [gained.low, gained.high]}
    return found


def gain(before: Sequence[Sample], after: Sequence[Sample]) -> Change:
    """What `after` gained on `before`; both hold the same problems."""
    earlier = {sample["id"]: bool(sample["correct"]) for sample in before}
    later = {sample["id"]: bool(sample["correct"]) for sample in after}
    assert earlier.keys() == later.keys(), "every problem is put to every model in both modes"
    return paired_change(list(earlier.values()), [later[key] for key in earlier])


def percentiles(values: Sequence[int]) -> dict[str, float]:
    """Median, 90th and 99th percentile (interpolated), and mean; zeros where there is nothing."""
    if not values:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0, "mean": 0.0}
    p50, p90, p99 = (round(float(p), 2) for p in np.percentile(values, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99, "mean": round(float(np.mean(values)), 2)}


def _rate(name: str, flags: Sequence[bool]) -> dict[str, Any]:
    share = _share(flags)
    return {name: share, f"{name}_ci": list(wilson(share, len(flags)))}


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
