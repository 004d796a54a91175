"""DeepSpeed's checkpoints on another number of processes, by its universal form.

A ZeRO checkpoint holds the shards of as many processes as wrote it. DeepSpeed's own converter writes
each tensor and its optimizer state whole, and any number of processes reads them. What its reader
loses under ZeRO-3 is given back before the first step (`_MendedOptimizer`).
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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
    if trainer.accelerator.state.deepspeed_plugin.zero_stage > 2:
        trainer.add_callback(_MendedOptimizer(trainer, _whole(folder)))
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
    if stage.lora is not None:
        return "its universal checkpoints aren't tried with LoRA"
    return ""


def _convert(checkpoint: Path) -> None:
    """Write the checkpoint's universal form beside its shards; a half-written one is replaced."""
    shards = _shards(checkpoint)
    whole = _whole(checkpoint)
    shutil.rmtree(whole, ignore_errors=True)
    command = [sys.executable, "-m", _CONVERTER, "--inject_missing_state"]
    command += ["--input_folder", str(shards), "--output_folder", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise CheckpointError(f"{shards}: DeepSpeed can't write its universal form: {last}")


def _shards(checkpoint: Path) -> Path:
    return checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()


def _whole(checkpoint: Path) -> Path:
    shards = _shards(checkpoint)
    return shards.with_name(f"{shards.name}_universal")


class _MendedOptimizer(TrainerCallback):
    """Gives an optimizer back what DeepSpeed 0.19.8 loses of it when ZeRO-3 reads the universal form.

    It gives one count of steps to all groups of parameters, and each of them raises it at a step, so
    Adam's bias correction goes wrong; and it gives all of them the first one's settings, such as its
    weight decay.
    """

    def __init__(self, trainer: Trainer, checkpoint: Path) -> None:
        self._trainer, self._checkpoint = trainer, checkpoint

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Called once the checkpoint has been read."""
        optimizer = self._trainer.model_wrapped.optimizer.optimizer
        for values in optimizer.state.values():
            values["step"] = torch.as_tensor(values["step"]).clone()
        path = self._checkpoint / "zero" / "optimizer_state.pt"
        saved = torch.load(path, map_location="cpu", weights_only=False)["param_groups"]
        for group, settings in zip(optimizer.param_groups, saved, strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})
