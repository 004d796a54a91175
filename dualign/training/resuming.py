"""A stage goes on from its last complete checkpoint, on as many processes as there are now.

A step's rows are processes x per_device_train_batch_size x gradient_accumulation_steps. Each
checkpoint says how many they were; on another number of processes the accumulation is changed so
that they stay the same. The order of rows doesn't depend on the processes, so the same rows follow.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

from dualign.distributed import is_main_process
from dualign.errors import CheckpointError
from dualign.rundir import CHECKPOINTS
from dualign.training.config import TrainingStage

logger = logging.getLogger(__name__)
COMPLETE = "complete"
"""the file that marks a checkpoint whose writing has ended; it says how many processes were started, how many took
rows of their own, and how many rows a step had"""
SHARDED_MODEL, SHARDED_OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"
"""accelerate's names of the folders with FSDP's parts of weights and optimizer"""
Engine = Literal["deepspeed", "fsdp-sharded", "fsdp-whole", "torch"]
"""What writes and reads a checkpoint."""
_ENGINES: Mapping[Engine, str] = {
    "deepspeed": "DeepSpeed",
    "fsdp-sharded": "FSDP (fsdp_state_dict_type SHARDED_STATE_DICT)",
    "fsdp-whole": "FSDP (fsdp_state_dict_type FULL_STATE_DICT)",
    "torch": "neither DeepSpeed nor FSDP",
}
# accelerate's names of the processes that share a row, set by a launcher's parallelism_config.
_SHARE_A_ROW = ("TP", "CP", "SP")


def last_checkpoint(work: Path) -> str | None:
    """Return the newest complete checkpoint in the work folder; delete incomplete ones."""
    complete = complete_checkpoints(work / CHECKPOINTS)
    for folder in (work / CHECKPOINTS).glob("checkpoint-*"):
        if folder not in complete:
            delete_checkpoint(folder)
    return str(complete[-1]) if complete else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, oldest first."""
    marked = (path for path in folder.glob("checkpoint-*") if (path / COMPLETE).exists())
    return sorted(marked, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def delete_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint, its mark first: cut short, what is left isn't taken for complete."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def mark_of(checkpoint: Path) -> dict[str, int] | None:
    """Return what the mark of a complete checkpoint says; None of an earlier version's, which is empty."""
    text = (checkpoint / COMPLETE).read_text(encoding="utf-8")
    mark: dict[str, int] | None = json.loads(text) if text else None
    return mark


def with_rows_of_checkpoint(
    stage: TrainingStage, settings: Mapping[str, Any], work: Path
) -> dict[str, Any]:
    """Return training arguments with which a step has as many rows as before the checkpoint.

    Raises:
        CheckpointError: no accumulation gives that with the processes of this launch.
    """
    checkpoint = last_checkpoint(work)
    before = mark_of(Path(checkpoint)) if checkpoint else None
    if before is None or settings.get("auto_find_batch_size"):
        return dict(settings)
    processes = processes_with_rows(int(os.environ.get("WORLD_SIZE", "1")), settings)
    rows, batch = before["rows_a_step"], int(settings.get("per_device_train_batch_size", 8))
    accumulation, rest = divmod(rows, processes * batch)
    if stage.depends_on_processes and processes != before["processes"]:
        raise CheckpointError(
            f"{checkpoint}: {stage.depends_on_processes} by the number of processes: start {before['processes']} as "
            f"before, not {processes}, or delete {work} to train anew"
        )
    if rest:
        raise CheckpointError(
            f"{checkpoint}: a step had {rows} rows on {before['processes']} processes, and {processes} processes with "
            f"per_device_train_batch_size {batch} can't make them: start as many processes that {batch} x processes "
            f"divides {rows}, or delete {work} to train anew"
        )
    if processes != before["processes"] and is_main_process():
        logger.info(
            "resumes with processes: %d instead of %d; gradient_accumulation_steps: %d, for %d rows a step as before",
            processes,
            before["processes"],
            accumulation,
            rows,
        )
    return {**settings, "gradient_accumulation_steps": accumulation}


def require_engine(checkpoint: Path, engine: Engine) -> None:
    """Refuse a checkpoint that another engine wrote: its optimizer's state would be left out, or not found.

    Raises:
        CheckpointError: it isn't of `engine`.
    """
    written = _engine_of(checkpoint)
    if written != engine:
        raise CheckpointError(
            f"{checkpoint}: written by {_ENGINES[written]}, and this launch trains with {_ENGINES[engine]}: launch as "
            f"before, or delete {checkpoint.parents[1]} to train anew"
        )


def _engine_of(checkpoint: Path) -> Engine:
    """Return which engine wrote a checkpoint, by its files."""
    if any(checkpoint.glob("global_step*")):
        return "deepspeed"
    if (checkpoint / SHARDED_MODEL).is_dir():
        return "fsdp-sharded"
    # Also of LOCAL_STATE_DICT, which has a file of each rank.
    return "fsdp-whole" if any(checkpoint.glob("pytorch_model_fsdp*.bin")) else "torch"


def processes_with_rows(started: int, settings: Mapping[str, Any]) -> int:
    """Return how many processes take rows of their own."""
    loader = settings.get("accelerator_config") or {}
    split = loader.get("split_batches") if isinstance(loader, Mapping) else loader.split_batches
    if split:
        return 1  # a batch is that of all processes
    sizes = (os.environ.get(f"PARALLELISM_CONFIG_{name}_SIZE", "1") for name in _SHARE_A_ROW)
    return max(1, started // prod(map(int, sizes)))
