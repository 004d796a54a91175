"""What SFT and preference training share around TRL's trainers: arguments, checkpoints, saving, and proof of what was saved."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dualign.checkpoints.adapters import concatenate, fold
from dualign.checkpoints.weights import from_hub
from dualign.errors import CheckpointError
from dualign.models.logits import (
    FLOAT32_BOUND,
    FLOOR,
    ROUNDED_BOUND,
    compare_logits,
    logits_of,
    saved_logits,
)
from dualign.models.source import ModelSource
from dualign.models.tokenizer import sync_special_tokens
from dualign.rundir import CHECKPOINTS
from dualign.training.config import TrainingStage
from dualign.training.policy import REFERENCE_ADAPTER, activate_policy_adapters

logger = logging.getLogger(__name__)
_TRL_COPY = (
    "ref"  # DPOTrainer copies the adapter it finds as its reference; ours is the parent's adapter
)
_COMPLETE = "complete"  # a file in a checkpoint whose writing has ended
PROBE_TOKENS = 256


def trainer_arguments(
    stage: TrainingStage, train: Mapping[str, Any], work: Path, seed: int
) -> dict[str, Any]:
    """The recipe's `train:` with what dualign sets and the defaults that differ from TRL's."""
    on_gpu = torch.cuda.is_available()
    defaults = {
        # Without it the processes of a launch on CPUs don't find each other, and each trains alone.
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": stage.dtype == "bfloat16" and on_gpu,
        "report_to": "none",
        "save_total_limit": 2,
        "dataloader_pin_memory": on_gpu,
        "logging_nan_inf_filter": False,
    }
    owned = {
        "output_dir": str(work / CHECKPOINTS),
        "seed": seed,
        "data_seed": seed,
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "max_length": None,
    }
    return {**defaults, **train, **owned}


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint when all of it is written, by every rank, so that a run killed while saving doesn't resume from
    half of one.
    """

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            (checkpoint / _COMPLETE).touch()


class RestoreAdaptersOnResume(TrainerCallback):
    """Resuming leaves only the new adapter active; this puts the parent's back before the first step."""

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
        if state.is_world_process_zero and logs:
            logger.info(log_line(state.global_step, state.max_steps, logs))


class OneLineLogs(ProgressCallback):
    """The progress bar, with one short line per log instead of a dict."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if self.training_bar is not None and state.is_world_process_zero and logs:
            self.training_bar.write(log_line(state.global_step, state.max_steps, logs))


_SHOWN = (
    "loss",
    "loss/think",
    "loss/no_think",
    "rewards/margins",
    "rewards/accuracies",
    "grad_norm",
    "learning_rate",
)


def log_line(step: int, steps: int, logs: Mapping[str, float]) -> str:
    """`step 10/80  loss 0.52  loss/think 0.41 ...`: the figures that people watch."""
    names = [prefix + name for prefix in ("", "eval_") for name in _SHOWN]
    figures = [f"{name} {float(logs[name]):.4g}" for name in names if name in logs]
    if not figures:
        figures = [
            f"{name} {float(logs[name]):.4g}"
            for name in ("train_loss", "train_runtime")
            if name in logs
        ]
    return "  ".join([f"step {step}/{steps}", *figures])


def require_all_processes(seen: int) -> None:
    """The trainer has to see every process that a launcher started.

    Raises:
        CheckpointError: it sees fewer, so each would train alone, with plausible losses.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if seen != started:
        raise CheckpointError(
            f"{started} processes were started, but the trainer sees {seen}: each would train alone; "
            "check use_cpu and distributed_type in the accelerate config"
        )


def prepare_trainer(trainer: Trainer, *, with_parent: bool) -> None:
    """Our callbacks in place of the ones that print dicts."""
    require_all_processes(trainer.args.world_size)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LogLines() if trainer.args.disable_tqdm else OneLineLogs())
    trainer.add_callback(CompleteCheckpoints())
    if with_parent:
        if _TRL_COPY in trainer.model.peft_config:
            trainer.model.delete_adapter(_TRL_COPY)
        activate_policy_adapters(trainer.model)
        trainer.add_callback(RestoreAdaptersOnResume())


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint in the work folder; half-written ones are deleted."""
    whole: dict[int, Path] = {}
    for folder in (work / CHECKPOINTS).glob("checkpoint-*"):
        if (folder / _COMPLETE).exists():
            whole[int(folder.name.removeprefix("checkpoint-"))] = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return str(whole[max(whole)]) if whole else None


def save_log(trainer: Trainer, work: Path) -> None:
    """log.jsonl: what the trainer logged, one object per line, earlier parts of a resumed run included."""
    if trainer.is_world_process_zero():
        lines = [json.dumps(entry) for entry in trainer.state.log_history]
        (work / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_result(
    trainer: Trainer,
    stage: TrainingStage,
    start: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
) -> dict[str, Any]:
    """Write weights or adapter, tokenizer and template into `work`; load them again and compare.

    Returns:
        The checks for run.json: `reload_max_logit_difference`, `largest_logit`, `saved`.

    Raises:
        CheckpointError: the logits of what was saved differ from the live model's.
    """
    sync_special_tokens(trainer.model, tokenizer)
    if stage.lora is None:
        _save_weights(trainer, work)
    else:
        trainer.save_model(str(work / CHECKPOINTS / "adapter"))
    if trainer.is_world_process_zero():
        if stage.lora is not None:
            _publish_adapter(trainer.model, work / CHECKPOINTS / "adapter", stage, start, work)
        tokenizer.save_pretrained(work)
        trainer.model.generation_config.save_pretrained(work)
    trainer.accelerator.wait_for_everyone()
    saved = "weights" if stage.lora is None else stage.save or "adapter"
    return {"saved": saved} | (_verify(trainer, stage, work) if stage.verify_reload else {})


def _save_weights(trainer: Trainer, work: Path) -> None:
    """The whole weights from all ranks. A tied head is stored once: gathering under ZeRO makes a copy of it."""
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else ()
    weights = {name: tensor for name, tensor in gathered.items() if name not in tied}
    model.save_pretrained(work, state_dict=weights)


def _publish_adapter(
    model: PreTrainedModel, trained: Path, stage: TrainingStage, start: ModelSource, work: Path
) -> None:
    """One adapter on the original base (ranks concatenated with the parent's), or the weights with it folded in."""
    shutil.rmtree(trained / REFERENCE_ADAPTER, ignore_errors=True)
    whole = trained
    if start.adapter is not None:
        whole = trained.with_name("concatenated")
        concatenate([start.adapter, trained], whole)
    target = work
    if stage.save == "merged":
        base = Path(start.base)
        fold(
            base if base.is_dir() else from_hub(start.base, revision=start.revision),
            whole,
            work,
            dtype=stage.dtype,
        )
        _set_ends(work / "config.json", model)
        target = work / "adapter"
        target.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(whole / name, target / name)


def _set_ends(config_json: Path, model: PreTrainedModel) -> None:
    """The folded weights' config comes from the base; its end and pad ids are the trained model's."""
    config = json.loads(config_json.read_text(encoding="utf-8"))
    config |= {"eos_token_id": model.config.eos_token_id, "pad_token_id": model.config.pad_token_id}
    config_json.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _verify(trainer: Trainer, stage: TrainingStage, work: Path) -> dict[str, Any]:
    ids_BT = _probe(trainer)
    nf4 = stage.quantization == "nf4"
    if nf4:
        _widen_adapters(trainer.model)
    live_BTV = logits_of(trainer.model_wrapped, ids_BT)
    if not trainer.is_world_process_zero():
        return {}
    saved_BTV = saved_logits(
        work, ids_BT, dtype=stage.dtype, attention=stage.attn_implementation, nf4=nf4
    )
    exact = stage.dtype == "float32" and not nf4 and not trainer.args.bf16
    checks = compare_logits(live_BTV, saved_BTV)
    name, bound = (
        ("reload_max_logit_difference", max(FLOOR, FLOAT32_BOUND * checks["largest_logit"]))
        if exact
        else ("reload_rms_share", ROUNDED_BOUND)
    )
    if not checks[name] <= bound:
        raise CheckpointError(
            f"{work}: the saved {stage.save or 'model'} gives other logits than the live model: {name} "
            f"{checks[name]:.3g}, bound {bound:.3g}, largest logit {checks['largest_logit']:.3g}; nothing was published"
        )
    return checks


def _widen_adapters(model: PreTrainedModel) -> None:
    """Compute the adapters in float32, as PEFT does once they are loaded; on an NF4 base TRL trains them in bfloat16."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _probe(trainer: Trainer) -> Tensor:
    """The first tokens of a training row, alone in a batch."""
    row = trainer.train_dataset[0]
    ids = row["input_ids"] if "input_ids" in row else row["prompt_ids"] + row["chosen_ids"]
    return torch.tensor([ids[:PROBE_TOKENS]], device=trainer.accelerator.device)


def training_metrics(trainer: Trainer) -> dict[str, Any]:
    """What a training stage reports: steps, tokens, last and evaluated figures, trainable parameters."""
    logged = trainer.state.log_history
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    evaluated = [entry for entry in logged if any(key.startswith("eval_") for key in entry)]
    ends = [entry for entry in logged if "train_runtime" in entry]
    found: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        # Under ZeRO-3 a parameter that no layer is using just now has 0 elements here.
        "trainable_parameters": sum(
            getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad
        ),
        "tokens": next(
            (entry["num_tokens"] for entry in reversed(logged) if "num_tokens" in entry), None
        ),
        "train_seconds": ends[-1]["train_runtime"] if ends else None,
    }
    if evaluated:
        found["validation"] = {
            key: value for key, value in evaluated[-1].items() if key.startswith("eval_")
        }
    if torch.cuda.is_available():
        found["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found
