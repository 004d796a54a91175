"""Callbacks of both training stages: pauses, active adapters, one line a log."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dualign.rundir import write_json
from dualign.training.policy import activate_policy_adapters
from dualign.training.progress import SHOWN

logger = logging.getLogger(__name__)
PAUSE_METRICS = "pause_metrics.json"  # in a checkpoint: the held-out metrics of a pause


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


class ProgressBarWithLogLines(ProgressCallback):
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


def _log_line(state: TrainerState, logs: Mapping[str, float]) -> str:
    """`step 10/80  loss 0.52  loss/think 0.41 ...`; at the end `train_loss` and `train_runtime`.

    "" where none of these is logged.
    """
    names = [prefix + name for prefix in ("", "eval_") for name in SHOWN if prefix + name in logs]
    names = names or [name for name in ("train_loss", "train_runtime") if name in logs]
    figures = (f"{name} {float(logs[name]):.4g}" for name in names)
    return "  ".join([f"step {state.global_step}/{state.max_steps}", *figures]) if names else ""
