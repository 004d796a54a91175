"""Successive halving: pause every run at a rung, rank the settings, let the better share go on.

Jamieson and Talwalkar (arXiv 1502.07943), with a fixed schedule: a run that goes on is the run that
was paused, and ends with the bits of a run that never was.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from dualign.experiments.measures import Measure
from dualign.experiments.runs import Run
from dualign.rundir import write_json

_RUNGS_JSON = "rungs.json"


class RungValues:
    """The values of a metric at the rungs, in a file: metric -> fingerprint of the stage -> step.

    What was decided stays decided when the experiment is interrupted, or run again.
    """

    def __init__(self, out: Path, measure: Measure | None) -> None:
        self._file = out / _RUNGS_JSON
        self._all: dict[str, dict[str, dict[str, float]]] = {}
        with suppress(OSError, ValueError):
            self._all = json.loads(self._file.read_text(encoding="utf-8"))
        self._values = self._all.setdefault(measure.name if measure else "", {})

    def get(self, fingerprint: str, rung: int) -> float | None:
        """Return a value that was measured."""
        return self._values.get(fingerprint, {}).get(str(rung))

    def add(self, fingerprint: str, rung: int, value: float) -> None:
        """Keep a value on the disk."""
        self._values.setdefault(fingerprint, {})[str(rung)] = value
        write_json(self._file, self._all)

    def of(self, fingerprint: str) -> list[tuple[int, float]]:
        """Return the (step, value) of a run, by step."""
        return sorted(
            (int(step), value) for step, value in self._values.get(fingerprint, {}).items()
        )


def better_settings(
    values: Mapping[str, Sequence[float]], measure: Measure, count: int
) -> set[str]:
    """Return the `count` best settings, by the mean of their seeds.

    A setting without a value, or whose metric isn't finite, is last. Ties go to the earlier one.
    """
    ranked = sorted(values, key=lambda setting: -_rank(values[setting], measure))
    return set(ranked[:count])


def _rank(values: Sequence[float], measure: Measure) -> float:
    finite = bool(values) and all(map(math.isfinite, values))
    return measure.better(fmean(values)) if finite else -math.inf


def rung_key(run: Run, stage: str, measure: Measure) -> str:
    """Return what the value of a run at a rung depends on: the stage, and the tasks that it is asked."""
    key = run.status(stage).fingerprint
    return key if measure.stage == stage else f"{key}:{run.status(measure.stage).fingerprint}"


def distinct_stages(runs: Sequence[Run], stage: str, measure: Measure) -> dict[str, Run]:
    """Return the first run of each value: the others share what it trains."""
    distinct: dict[str, Run] = {}
    for run in runs:
        distinct.setdefault(rung_key(run, stage, measure), run)
    return distinct
