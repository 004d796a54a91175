"""The figure that says most about a stage: of its run.json, or of how far it is."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import fmean
from typing import Any

from dualign.progress import Progress

_WHILE_RUNNING = ("loss", "loss/think", "loss/no_think", "rewards/accuracies")


def key_figure(record: Mapping[str, Any]) -> str:
    """Return the figure of a run.json that says most about its stage; "" without any."""
    metrics = record.get("metrics") or {}
    for figure in _FIGURES:
        with suppress(KeyError, TypeError, ValueError, IndexError):
            if text := figure(metrics):
                return text
    kept = (record.get("rows") or {}).get("kept")
    return "" if kept is None else f"{kept:,} rows"


def progress_figure(progress: Progress | None, *, is_running: bool) -> str:
    """Return how far an unfinished stage is, and its last figures; "" where nothing says it."""
    if progress is None:
        return ""
    left = progress.seconds_left
    parts = [progress.count if is_running else f"stopped at {progress.count}"]
    if is_running and left and progress.done < progress.total:
        parts.append(f"{duration(left)} left")
    return ", ".join([*parts, *filter(None, [last_figures(progress)])])


def last_figures(progress: Progress) -> str:
    """Return the last figures of an unfinished stage's log; "" without any."""
    logged = progress.logged()
    return ", ".join(f"{name} {logged[name]:.4g}" for name in _WHILE_RUNNING if name in logged)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _accuracies(metrics: Mapping[str, Any]) -> str:
    modes = {
        mode: [
            task[mode]["accuracy"]
            for task in metrics["tasks"].values()
            if task[mode]["accuracy"] is not None
        ]
        for mode in ("think", "no_think")
    }
    means = ", ".join(f"{mode} {100 * fmean(values):.1f} %" for mode, values in modes.items())
    tasks = len(metrics["tasks"])
    return f"{means} (mean of {tasks} task{'s' if tasks > 1 else ''})"


def _margin(metrics: Mapping[str, Any]) -> str:
    return f"held-out margin {metrics['validation']['eval_rewards/margins']:+.2f}"


def _held_out_loss(metrics: Mapping[str, Any]) -> str:
    return f"held-out loss {metrics['validation']['eval_loss']:.4f}"


def _loss(metrics: Mapping[str, Any]) -> str:
    return f"loss {metrics['first_loss']:.4f} -> {metrics['last_loss']:.4f}"


def _pairs(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['pairs']:,} pairs of {metrics['samples']:,} answers"


def _traces(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['think_rows']:,} traces of {metrics['questions']:,} questions"


def _merge(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['method']}, {metrics['tensors']:,} tensors"


_FIGURES: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    _accuracies, _margin, _held_out_loss, _loss, _pairs, _traces, _merge,
)  # fmt: skip
