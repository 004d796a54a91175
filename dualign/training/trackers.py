"""Trackers by `train.report_to`: where a stage's figures go while it trains, besides log.jsonl.

transformers' callbacks write them. Here they get a run that goes on when the stage is resumed, a folder that the
finished stage keeps, and a guard: a tracker that fails doesn't end the training.
"""

import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
)

from dualign.rundir import CHECKPOINTS
from dualign.training.config import TrainingStage

logger = logging.getLogger(__name__)
_FOLDER = "tensorboard"  # in the run directory
_RUN = "tracked_run"  # the file with the run's id, as long as the stage isn't finished


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What trackers call the run of a stage."""

    project: str
    """the recipe's output folder, if `train.project` doesn't say"""
    id: str
    """of this run of the stage: the same after it was resumed, another when it starts anew"""
    name: str
    """`train.run_name`, or the id"""
    folder: Path
    """the run directory"""


class _Tracker:
    """One of transformers' callbacks, which gets no more figures once it has failed."""

    def __init__(self, name: str, callback: TrainerCallback, run: _Run) -> None:
        self.name, self.callback, self.run = name, callback, run
        self.failure: str | None = None

    def record(self) -> dict[str, str]:
        """Return what run.json says of it."""
        about = {"project": self.run.project, "run": self.run.name}
        return about if self.failure is None else {**about, "failed": self.failure}

    def tell(
        self,
        event: str,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Pass an event of the trainer on."""
        if self.failure is not None:
            return
        try:
            if event == "on_train_begin" and state.is_world_process_zero:
                _start(self.name, self.callback, self.run, state.global_step)
            getattr(self.callback, event)(args, state, control, **kwargs)
            if event == "on_train_end" and state.is_world_process_zero:
                _finish(self.name)
        # Whatever a tracker's package raises, without network, disk or login: the training is worth more.
        except Exception as error:
            words = " ".join(str(error).split())
            self.failure = f"at step {state.global_step}: {type(error).__name__}: {words}"
            logger.warning(
                "%s failed %s. It gets no more figures; training goes on, and log.jsonl will have all of them",
                self.name,
                self.failure,
            )


class _Trackers(TrainerCallback):
    """All trackers of a stage as one callback: transformers warns of two of one class."""

    def __init__(self, trackers: Sequence[_Tracker]) -> None:
        self.trackers = trackers

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_train_begin", *args, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_log", *args, **kwargs)

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_evaluate", *args, **kwargs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_step_end", *args, **kwargs)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_save", *args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._tell("on_train_end", *args, **kwargs)

    def _tell(self, event: str, *args: Any, **kwargs: Any) -> None:
        for tracker in self.trackers:
            tracker.tell(event, *args, **kwargs)


def add_trackers(trainer: Trainer, stage: TrainingStage) -> None:
    """Put trackers with a guard in the place of the callbacks that `report_to` made."""
    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    callbacks = [
        callback for callback in trainer.callback_handler.callbacks if type(callback) in names
    ]
    if not callbacks:
        return
    run = _tracked_run(trainer, stage)
    trainer.args.project, trainer.args.run_name = run.project, run.name
    for callback in callbacks:
        trainer.remove_callback(callback)
    trackers = [_Tracker(names[type(callback)], callback, run) for callback in callbacks]
    trainer.add_callback(_Trackers(trackers))


def tracker_records(trainer: Trainer) -> dict[str, dict[str, str]]:
    """Return what run.json says of each tracker."""
    return {
        tracker.name: tracker.record()
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, _Trackers)
        for tracker in callback.trackers
    }


def _tracked_run(trainer: Trainer, stage: TrainingStage) -> _Run:
    train: dict[str, Any] = stage.train  # type: ignore[attr-defined]
    folder = Path(trainer.args.output_dir).parent.resolve()
    file = folder / CHECKPOINTS / _RUN
    if trainer.is_world_process_zero() and not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{stage.name}-{secrets.token_hex(4)}", encoding="utf-8")
    # Ranks other than the first report nothing.
    identity = file.read_text(encoding="utf-8") if file.is_file() else stage.name
    return _Run(
        project=train.get("project") or folder.parent.name or "dualign",
        id=identity,
        name=train.get("run_name") or identity,
        folder=folder,
    )


def _start(name: str, callback: TrainerCallback, run: _Run, step: int) -> None:
    """Open the run, where the callback would open another one after a pause."""
    if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
        _open_tensorboard(callback, run.folder / _FOLDER, step)
    if name == "wandb":
        _open_wandb(run)


def _open_tensorboard(callback: TensorBoardCallback, folder: Path, step: int) -> None:
    """Write into the run directory; the default lies in the checkpoints, which a finished stage deletes."""
    package = "torch.utils.tensorboard" if find_spec("tensorboard") else "tensorboardX"
    callback.logging_dir = str(folder)
    # What was logged after the checkpoint that training resumes from will be logged again.
    writer = import_module(package).SummaryWriter
    callback.tb_writer = writer(log_dir=str(folder), purge_step=step + 1)


def _open_wandb(run: _Run) -> None:
    import wandb

    if wandb.run is None:  # else the user's, opened before
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            name=run.name,
            id=os.environ.get("WANDB_RUN_ID") or run.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
        )


def _finish(name: str) -> None:
    """Close a run that its callback leaves open: the next stage would go on in it."""
    if name == "wandb":
        import wandb

        wandb.finish()
