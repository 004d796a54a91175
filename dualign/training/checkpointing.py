"""Writing of checkpoints: complete or not there, and while training goes on where an engine's can.

A checkpoint is complete once it has its mark, which comes after every rank's part. Older ones are
deleted after that, the mark of each first. So kill -9 leaves a complete one at any time, once there
was one.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from dualign.errors import CheckpointError, TrainingError
from dualign.rundir import write_json
from dualign.training.parallelism import NEEDS_SHARDS
from dualign.training.resuming import (
    COMPLETE,
    SHARDED_MODEL,
    SHARDED_OPTIMIZER,
    complete_checkpoints,
    delete_checkpoint,
    processes_with_rows,
)


class SavesCheckpoints(Trainer):
    """A trainer that may write its checkpoints in the background: FSDP2's sharded ones, by torch's DCP.

    A save then copies this rank's part to the host's memory and goes on. The files are those that
    accelerate writes, and it reads them.
    """

    _background: "_Background | None" = None

    def save_in_background(self) -> None:
        """Write checkpoints while training goes on, from now on; called on all ranks.

        Raises:
            CheckpointError: this engine's can't be.
        """
        plugin: Any = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        version = plugin and plugin.fsdp_version
        if version != 2 or "SHARDED" not in str(plugin.state_dict_type):
            raise CheckpointError(f"async_checkpoints: {NEEDS_SHARDS}")
        self._background = _Background()

    def when_written(self, then: Callable[[], None]) -> None:
        """Call a function once all ranks have written what they're writing: now if that is nothing."""
        if self._background is None:
            then()
        else:
            self._background.when_written(then)

    def wait_for_checkpoint(self) -> None:
        """Return when the last checkpoint is written.

        Raises:
            TrainingError: it couldn't be.
        """
        if self._background is not None:
            self._background.wait()

    def train(self, *args: Any, **keys: Any) -> Any:
        output = super().train(*args, **keys)
        self.wait_for_checkpoint()
        return output

    def _load_best_model(self) -> None:
        self.wait_for_checkpoint()
        super()._load_best_model()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._background is None:
            try:
                super()._save_optimizer_and_scheduler(output_dir)
            except CheckpointException as error:
                raise _failure(Path(output_dir), error) from error
            return
        self.wait_for_checkpoint()
        folder = Path(output_dir)
        self._background.save(folder, _sharded_states(self.model, self.optimizer))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)


def _sharded_states(model: torch.nn.Module, optimizer: Any) -> Mapping[str, dict[str, Any]]:
    """Return folder -> this rank's part of the states, under the names that accelerate reads."""
    from peft import PeftModel, get_peft_model_state_dict
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    weights = (
        get_peft_model_state_dict(model, adapter_name=model.active_adapter)
        if isinstance(model, PeftModel)
        else get_model_state_dict(model)
    )
    return {
        SHARDED_MODEL: {"model": weights},
        SHARDED_OPTIMIZER: {"optimizer": get_optimizer_state_dict(model, optimizer)},
    }


class _Background:
    """One checkpoint at a time, written by threads of this rank."""

    def __init__(self) -> None:
        from torch.distributed import new_group
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        # Threads talk in groups of their own, beside training and each other.
        folders = (SHARDED_MODEL, SHARDED_OPTIMIZER)
        self._groups = {folder: new_group(backend="gloo") for folder in folders}
        # The same memory for every checkpoint.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=torch.cuda.is_available(),
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=torch.accelerator.is_available(),
            )
        )
        self._followers = ThreadPoolExecutor(max_workers=1)
        self._folder = Path()
        self._written: list[Future[Any]] = []

    def save(self, checkpoint: Path, states: Mapping[str, dict[str, Any]]) -> None:
        """Copy the states, and begin to write them."""
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self._folder = checkpoint
        for folder, state in states.items():
            path = checkpoint / folder
            path.mkdir(parents=True, exist_ok=True)
            written = async_save(
                state,
                storage_writer=FileSystemWriter(path),
                process_group=self._groups[folder],
                async_stager=self._stager,
            )
            assert isinstance(written, Future), "the stager has copied by now"
            self._written.append(written)

    def when_written(self, then: Callable[[], None]) -> None:
        # DCP ends a save on rank 0 after all ranks have written their parts.
        self._written.append(self._followers.submit(_after, [*self._written], then))

    def wait(self) -> None:
        written, self._written = self._written, []
        try:
            _after(written)
        except (CheckpointException, Exception) as error:
            raise _failure(self._folder, error) from error


def _failure(checkpoint: Path, error: BaseException) -> TrainingError:
    """Return what went wrong in words; DCP's own exception, which is no Exception, holds tracebacks."""
    words = str(error)
    if isinstance(error, CheckpointException):
        of_ranks = sorted(error.failures.items())
        words = "; ".join(f"rank {rank}: {failure}" for rank, (failure, _) in of_ranks)
    return TrainingError(
        f"{checkpoint}: the checkpoint can't be written: {' '.join(words.split())}"
    )


def _after(written: Sequence[Future[Any]], then: Callable[[], None] = lambda: None) -> None:
    for future in written:
        future.result()
    then()


class MarkCompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint once every rank has written its part, and deletes those that are too many.

    A run that is killed while saving then doesn't resume from half a checkpoint. transformers would
    delete before the new one is complete, and leave half-deleted ones.
    """

    def __init__(self, trainer: SavesCheckpoints) -> None:
        self._trainer = trainer
        self._limit = trainer.args.save_total_limit or 0
        trainer.args.save_total_limit = None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        args.distributed_state.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        processes = processes_with_rows(args.world_size, vars(args))
        mark = {
            "started": args.world_size,
            "processes": processes,
            "rows_a_step": processes
            * args.per_device_train_batch_size
            * args.gradient_accumulation_steps,
        }
        best = state.best_model_checkpoint

        def complete() -> None:
            write_json(checkpoint / COMPLETE, mark)
            self._delete_older(checkpoint, best)

        self._trainer.when_written(complete)

    def _delete_older(self, newest: Path, best: str | None) -> None:
        """Keep the newest `save_total_limit` checkpoints; the last and the best one always."""
        complete = complete_checkpoints(newest.parent)
        kept = {newest, *([Path(best)] if best else [])}
        too_many = len(complete) - max(self._limit, len(kept)) if self._limit > 0 else 0
        for folder in [folder for folder in complete if folder not in kept][: max(0, too_many)]:
            delete_checkpoint(folder)
