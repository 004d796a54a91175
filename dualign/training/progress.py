"""What a training stage tells of itself while it trains: its log so far, and how far it is.

WORK/log.jsonl        the entries so far, those before a resume included
WORK/progress.json    step, speed, memory, the last figures (dualign/progress.py)
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dualign.environment import peak_memory_mb
from dualign.progress import ProgressNotes

logger = logging.getLogger(__name__)
_LOG = "log.jsonl"
SHOWN = (
    "loss",
    "loss/think",
    "loss/no_think",
    "loss/text",
    "rewards/margins",
    "rewards/accuracies",
    "grad_norm",
    "learning_rate",
)
"""Figures that say most about training."""


def write_log(state: TrainerState, work: Path) -> None:
    """Write log.jsonl: one object per logged step, those before a resume included."""
    lines = [json.dumps(entry) for entry in state.log_history]
    (work / _LOG).write_text("\n".join(lines) + "\n", encoding="utf-8")


class TellProgress(TrainerCallback):
    """Writes both files on rank 0; a folder that can't be written doesn't end the training."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._notes: ProgressNotes | None = None
        self._written: list[Mapping[str, Any]] = []  # entries of the log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        step, self._on_gpu = state.global_step, args.device.type == "cuda"
        self._notes = ProgressNotes(self._work, unit="step", total=state.max_steps, done=step)
        self._written, self._tokens, self._speed = [], _tokens(state), 0.0
        self._write_log(state)
        self._tell(state, at_once=True)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._notes is None:
            return
        if new := _tokens(state) - self._tokens:
            self._speed = new / max(self._notes.seconds, 1e-9)
        self._write_log(state)
        self._tell(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not control.should_log:  # else its figures are about to come
            self._tell(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._tell(state, at_once=True)

    def _tell(self, state: TrainerState, *, at_once: bool = False) -> None:
        if self._notes is not None:
            self._notes.note(state.global_step, lambda: self._figures(state), at_once=at_once)

    def _figures(self, state: TrainerState) -> Mapping[str, float]:
        last: dict[str, float] = {}
        for entry in state.log_history[-50:]:
            last |= {name: entry[name] for name in SHOWN if name in entry}
        last["memory_mb"] = peak_memory_mb()
        if self._on_gpu:
            last["gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return last | ({"tokens_per_second": round(self._speed, 1)} if self._speed else {})

    def _write_log(self, state: TrainerState) -> None:
        """Append what is new; all of it at the start, after entries were taken away or not written."""
        if self._notes is None or self._notes.work is None:
            return
        history, before = [*state.log_history], self._written
        self._written = []
        try:
            if not before or history[: len(before)] != before:
                write_log(state, self._work)
            else:
                new = "".join(json.dumps(entry) + "\n" for entry in history[len(before) :])
                with (self._work / _LOG).open("a", encoding="utf-8") as file:
                    file.write(new)
        except OSError as error:
            logger.debug("%s can't be written yet: %s", self._work / _LOG, error)
            return
        self._written = history


def _tokens(state: TrainerState) -> float:
    """Return the tokens that were trained on, as TRL logged them last."""
    logged = (entry["num_tokens"] for entry in reversed(state.log_history) if "num_tokens" in entry)
    return float(next(logged, 0))
