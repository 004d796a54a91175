"""Training to the end, or to `pause_at_step`: a paused stage goes on later, to the same bits."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer

from dualign.distributed import run_on_main_process
from dualign.models.source import ModelSource
from dualign.rundir import CHECKPOINTS, Paused, paused_model
from dualign.training.best import choose_best
from dualign.training.callbacks import PAUSE_METRICS, PauseAtStep
from dualign.training.config import TrainingStage
from dualign.training.resuming import delete_checkpoint, last_checkpoint, step_of
from dualign.training.trainer import save_result
from dualign.training.universal import read_on_any_processes


class EndsAtLastStep(Trainer):
    """A trainer that trains nothing when it resumes from the checkpoint of its last step.

    transformers looks at `max_steps` after a step only, and would take one more.
    """

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[no-any-return]


def add_pause(
    trainer: Trainer,
    stage: TrainingStage,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
) -> None:
    """Let the trainer pause where the stage says; called before `prepare_trainer`."""

    def save(step: int) -> None:
        folder = paused_model(work, step)
        run_on_main_process(lambda: shutil.rmtree(folder, ignore_errors=True))
        save_result(trainer, replace(stage, verify_reload=False), source, tokenizer, folder)
        run_on_main_process(lambda: shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True))

    if stage.pause_at_step is not None:
        trainer.add_callback(PauseAtStep(trainer, stage.pause_at_step, save))


def train(trainer: Trainer, stage: TrainingStage, work: Path) -> Paused | None:
    """Train from the last complete checkpoint in `work`; returns where the stage paused, if it did.

    The schedule is that of all steps, so the weights at a pause are those of a run without it.
    """
    choose_best(trainer, stage)
    pause = stage.pause_at_step
    if pause is not None:
        run_on_main_process(lambda: _drop_later_checkpoints(work, pause))
    checkpoint = last_checkpoint(work)
    paused = _paused_at(Path(checkpoint)) if checkpoint else None
    if paused is not None and paused.step == pause:
        return paused
    read_on_any_processes(trainer, stage, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    step = trainer.state.global_step
    if pause is None or step < pause or step >= trainer.state.max_steps:
        return None
    return _paused_at(work / CHECKPOINTS / f"checkpoint-{step}")


def _drop_later_checkpoints(work: Path, step: int) -> None:
    """Delete checkpoints that are past the pause: the metrics of that step can't be measured there."""
    for folder in (work / CHECKPOINTS).glob("checkpoint-*"):
        number = step_of(folder)
        if number > step or (number == step and _paused_at(folder) is None):
            delete_checkpoint(folder)


def _paused_at(checkpoint: Path) -> Paused | None:
    path = checkpoint / PAUSE_METRICS
    if not path.is_file():
        return None
    return Paused(step=step_of(checkpoint), metrics=json.loads(path.read_text(encoding="utf-8")))
