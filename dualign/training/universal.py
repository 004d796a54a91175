"""DeepSpeed's checkpoints on another number of processes, by its universal form.

A ZeRO checkpoint holds the shards of as many processes as wrote it. DeepSpeed's own converter writes
each tensor and its optimizer state whole, and any number of processes reads them. ZeRO-2 goes on with
the same losses; ZeRO-3 doesn't (0.2 % off four steps later), and is refused.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from transformers import Trainer

from dualign.distributed import run_on_main_process
from dualign.errors import CheckpointError
from dualign.training.config import TrainingStage
from dualign.training.resuming import Engine, mark_of, require_engine

_CONVERTER = "deepspeed.checkpoint.ds_to_universal"


def read_on_any_processes(trainer: Trainer, stage: TrainingStage, checkpoint: str | None) -> None:
    """Let the trainer read a checkpoint that another number of processes wrote, if that needs anything.

    FSDP reads its sharded checkpoints on any number by itself.

    Raises:
        CheckpointError: DeepSpeed can't, or another engine wrote it.
    """
    if checkpoint is None:
        return
    folder = Path(checkpoint)
    if not trainer.args.save_only_model:
        require_engine(folder, _engine(trainer))
    if not trainer.is_deepspeed_enabled:
        return
    before = (mark_of(folder) or {}).get("started")
    if before in (None, trainer.args.world_size):
        return
    reason = _reason_against(trainer, stage)
    if reason:
        raise CheckpointError(
            f"{folder}: written by {before} processes of DeepSpeed, read by {trainer.args.world_size}: {reason}; start "
            f"{before} as before"
        )
    run_on_main_process(lambda: _convert(folder))
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}


def _engine(trainer: Trainer) -> Engine:
    """Return which engine a trainer trains with."""
    if trainer.is_deepspeed_enabled:
        return "deepspeed"
    if not trainer.is_fsdp_enabled:
        return "torch"
    kind = str(trainer.accelerator.state.fsdp_plugin.state_dict_type)
    return "fsdp-sharded" if "SHARDED" in kind else "fsdp-whole"


def _reason_against(trainer: Trainer, stage: TrainingStage) -> str:
    if trainer.args.load_best_model_at_end:
        return "its universal checkpoints don't go back to the step that is published"
    if trainer.accelerator.state.deepspeed_plugin.zero_stage > 2:
        return "its universal checkpoints of ZeRO-3 go on with other losses (FSDP2's don't)"
    if stage.lora is not None:
        return "its universal checkpoints aren't tried with LoRA"
    return ""


def _convert(checkpoint: Path) -> None:
    """Write the checkpoint's universal form beside its shards; a half-written one is replaced."""
    shards = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    whole = shards.with_name(f"{shards.name}_universal")
    shutil.rmtree(whole, ignore_errors=True)
    command = [sys.executable, "-m", _CONVERTER, "--inject_missing_state"]
    command += ["--input_folder", str(shards), "--output_folder", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise CheckpointError(f"{shards}: DeepSpeed can't write its universal form: {last}")
