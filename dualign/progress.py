"""How far an unfinished stage is, for anyone who looks into its work folder.

    OUT/.sft.partial/progress.json    {"unit": "step", "done": 120, "total": 400, "seconds": 61.2, ...}

`dualign runs` and the live report read it; it goes when the stage is finished.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dualign.rundir import PROGRESS, is_work_of_stage, write_json

logger = logging.getLogger(__name__)
_SECONDS = 2.0  # between two notes
_MIB_PER_GIB = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What is done of a stage's work, and what that took."""

    unit: str
    """what is counted: step, answer"""
    done: int
    total: int
    seconds: float
    """since this process began with it"""
    earlier: int = 0
    """what was done before: a resumed stage"""
    doing: str = ""
    """what the work is, where a stage has several: `answers of sft`"""
    figures: Mapping[str, float] = field(default_factory=dict)
    """the last ones logged, by the names of log.jsonl, and those of `_MEASURED`"""

    @property
    def seconds_left(self) -> float | None:
        """The time that the rest takes at the speed so far; None before the first step."""
        new = self.done - self.earlier
        return self.seconds * (self.total - self.done) / new if new > 0 else None

    @property
    def count(self) -> str:
        """`step 120 of 400`, `answers of sft: 12 of 80`."""
        label = f"{self.doing}:" if self.doing else self.unit
        return f"{label} {self.done:,} of {self.total:,}"

    def measured(self) -> dict[str, str]:
        """Return speed and memory in words, by what they are."""
        return {
            words: form(self.figures[name])
            for name, (words, form) in _MEASURED.items()
            if name in self.figures
        }

    def logged(self) -> dict[str, float]:
        """Return the figures of the log."""
        return {name: value for name, value in self.figures.items() if name not in _MEASURED}


def _tokens(value: float) -> str:
    return f"{value:,.0f}"


def _gib(value: float) -> str:
    return f"{value / _MIB_PER_GIB:.2f} GiB"


_MEASURED: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens_per_second": ("Tokens a second", _tokens),
    "memory_mb": ("Memory, peak", _gib),
    "gpu_mb": ("GPU memory, peak", _gib),
}


class ProgressNotes:
    """Notes how far the work in a stage's folder is, every few seconds; elsewhere it notes nothing.

    A note that can't be written is told once: the work is worth more.
    """

    def __init__(
        self, work: Path, *, unit: str, total: int, done: int = 0, doing: str = ""
    ) -> None:
        self.work = work if is_work_of_stage(work) else None
        self._unit, self._total, self._earlier, self._doing = unit, total, done, doing
        self._started, self._last = time.monotonic(), -_SECONDS
        self._failed = False

    @property
    def seconds(self) -> float:
        """The time since the work began."""
        return time.monotonic() - self._started

    def note(
        self,
        done: int,
        figures: Callable[[], Mapping[str, float]] = dict,
        *,
        at_once: bool = False,
    ) -> None:
        """Write how far the work is, if the last note is a few seconds old.

        Args:
            figures: called when they are written.
            at_once: however old the last note is.
        """
        now = self.seconds
        if self.work is None or (now - self._last < _SECONDS and not at_once):
            return
        self._last = now
        progress = Progress(
            unit=self._unit,
            done=done,
            total=self._total,
            earlier=self._earlier,
            doing=self._doing,
            seconds=round(now, 1),
            figures=dict(figures()),
        )
        try:
            write_json(self.work / PROGRESS, asdict(progress))
        except OSError as error:
            if not self._failed:
                logger.warning("how far the stage is can't be noted (%s); it goes on", error)
            self._failed = True


def read_progress(work: Path) -> Progress | None:
    """Return how far the stage of a work folder is; None where nothing says it."""
    try:
        return Progress(**json.loads((work / PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
