"""Callbacks of both training stages: pauses, active adapters, what is shown of the steps."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dualign.notebook import Output, html_bar, html_table, in_notebook
from dualign.rundir import write_json
from dualign.training.policy import activate_policy_adapters
from dualign.training.progress import SHOWN

logger = logging.getLogger(__name__)
PAUSE_METRICS = "pause_metrics.json"  # in a checkpoint: the held-out metrics of a pause
_REDRAW_SECONDS = 0.5
_SHOWN_ROWS = 50  # of a table in a notebook


class PauseAtStep(TrainerCallback):
    """Ends training after a step, with a checkpoint, the held-out metrics of that step and its model.

    They are made when the checkpoint is saved, since a data loader draws from the generator that
    dropout draws from: measured before, they would change what follows. It comes before
    MarkCompleteCheckpoints, so a checkpoint without its metrics is never complete.

    Args:
        save: writes the model of a step, on all ranks.
    """

    def __init__(self, trainer: Trainer, step: int, save: Callable[[int], None]) -> None:
        self.trainer, self.step, self.save = trainer, step, save

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.step > state.max_steps and state.is_world_process_zero:
            logger.warning(
                "pause_at_step %d lies after the last step, %d: no pause",
                self.step,
                state.max_steps,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.step <= state.global_step < state.max_steps:
            control.should_log = control.should_save = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.step <= state.global_step < state.max_steps:
            return
        metrics = self._metrics(state)
        control.should_save = False  # a best step is saved by now
        self.save(state.global_step)
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / PAUSE_METRICS, metrics)

    def _metrics(self, state: TrainerState) -> dict[str, float]:
        """Return what the recipe measured at this step, else measure it.

        Such a measurement stays out of the log, by which a stage chooses the step that it publishes:
        without the pause it wouldn't be there.
        """
        if self.trainer.eval_dataset is None:
            return {}
        if metrics := _held_out(state):
            return metrics
        before = len(state.log_history)
        self.trainer.evaluate()
        metrics = _held_out(state)
        del state.log_history[before:]
        return metrics


def _held_out(state: TrainerState) -> dict[str, float]:
    """Return the held-out metrics in the log of this step; nothing if they weren't measured."""
    for entry in reversed(state.log_history):
        if entry["step"] == state.global_step and "eval_loss" in entry:
            return {key: value for key, value in entry.items() if key.startswith("eval_")}
    return {}


class RestoreAdaptersOnResume(TrainerCallback):
    """Activates both adapters before the first step; resuming leaves only the new one active."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        activate_policy_adapters(kwargs["model"])


class LogLines(TrainerCallback):
    """One short line per log, for output that is no terminal."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and (line := _log_line(state, logs or {})):
            logger.info(line)


class _ProgressBarWithLogLines(ProgressCallback):
    """transformers' progress bar, with one short line per log instead of a dict."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        bar = self.training_bar if state.is_world_process_zero else None
        if bar is not None and (line := _log_line(state, logs or {})):
            bar.write(line)


class NotebookProgress(TrainerCallback):
    """In a notebook, a bar of steps above a table with a row for each logged step."""

    def __init__(self) -> None:
        self._output = Output()
        self._rows: dict[int, dict[str, str]] = {}
        self._start = self._drawn = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._start, self._first_step = time.monotonic(), state.global_step
        self._draw(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if figures := _figures(logs or {}):
            self._rows.setdefault(state.global_step, {}).update(figures)
            self._draw(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._draw(state)

    def _draw(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        self._drawn = time.monotonic()
        bar = self._bar_text(state)
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        shown = list(self._rows.items())[-_SHOWN_ROWS:]
        rows = [(step, *(row.get(name, "") for name in columns)) for step, row in shown]
        hidden = len(self._rows) - len(shown)
        table = html_table(
            ("step", *columns),
            rows,
            caption=f"{hidden} rows above these are in the stage's log" if hidden else "",
            text_columns=0,
        )
        html = html_bar(state.global_step, state.max_steps, bar) + (table if rows else "")
        self._output.show(html, bar)

    def _bar_text(self, state: TrainerState) -> str:
        elapsed = time.monotonic() - self._start
        text = (
            f"step {state.global_step} of {state.max_steps}, {tqdm.format_interval(elapsed)} so far"
        )
        steps, left = state.global_step - self._first_step, state.max_steps - state.global_step
        if steps and left > 0:
            text += f", {tqdm.format_interval(elapsed / steps * left)} to go"
        return text


def progress_callback(args: TrainingArguments) -> TrainerCallback:
    """Return what shows the progress of training: in a notebook, on a terminal, or in a log."""
    if args.disable_tqdm:
        return LogLines()
    return NotebookProgress() if in_notebook() else _ProgressBarWithLogLines()


def _figures(logs: Mapping[str, float]) -> dict[str, str]:
    """Return what is shown of a log, as text."""
    names = [prefix + name for prefix in ("", "eval_") for name in SHOWN if prefix + name in logs]
    return {name: f"{float(logs[name]):.4g}" for name in names}


def _log_line(state: TrainerState, logs: Mapping[str, float]) -> str:
    """`step 10/80  loss 0.52  loss/think 0.41 ...`; at the end `train_loss` and `train_runtime`.

    "" where none of these is logged.
    """
    end = ("train_loss", "train_runtime")
    figures = _figures(logs) or {name: f"{float(logs[name]):.4g}" for name in end if name in logs}
    texts = (f"{name} {figure}" for name, figure in figures.items())
    return "  ".join([f"step {state.global_step}/{state.max_steps}", *texts]) if figures else ""
