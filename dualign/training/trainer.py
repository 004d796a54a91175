"""Around TRL's trainers, for both training stages: arguments, checkpoints, saving and its check."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from dualign.attention.function import ATTENTION
from dualign.attention.segments import document_segments
from dualign.checkpoints.adapters import concatenate, fold
from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.finite import non_finite_tensors
from dualign.checkpoints.lora import TOKENS
from dualign.checkpoints.token_rows import last_token, leave_out_resized_base
from dualign.checkpoints.weights import from_hub
from dualign.errors import CheckpointError, ConfigError, DualignError, TrainingError
from dualign.models.device import Device, device_name
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
from dualign.notebook import in_notebook
from dualign.rundir import CHECKPOINTS
from dualign.training.best import choice_metrics
from dualign.training.callbacks import (
    RestoreAdaptersOnResume,
    progress_callback,
)
from dualign.training.checkpointing import MarkCompleteCheckpoints, SavesCheckpoints
from dualign.training.config import TrainingStage, lower_is_better
from dualign.training.frozen_start import FROZEN_START
from dualign.training.hangs import EndHangs, seconds_to_a_hang
from dualign.training.learning_rates import set_adapter_rates
from dualign.training.policy import REFERENCE_ADAPTER, activate_policy_adapters, frozen_adapters
from dualign.training.precision import training_device
from dualign.training.progress import TellProgress, write_log
from dualign.training.resuming import with_rows_of_checkpoint
from dualign.training.saved_config import raise_text_limit, set_trained_keys
from dualign.training.trackers import add_trackers, tracker_records

# DPOTrainer copies the adapter it finds under this name, as its reference. Ours is the earlier
# stage's adapter.
_TRL_REFERENCE = "ref"
_PROBE_TOKENS = 256
# accelerate's names; a launcher may set what the recipe doesn't.
_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


def trainer_arguments(
    stage: TrainingStage,
    train: Mapping[str, Any],
    work: Path,
    seed: int,
    *,
    device: Device | None = None,
) -> dict[str, Any]:
    """Return the recipe's `train:` over dualign's defaults, and under what dualign sets itself.

    Args:
        device: that of this process if absent.

    Raises:
        CheckpointError: a step can't have as many rows as before the checkpoint in `work`.
    """
    device = device or training_device(stage)
    defaults = {
        # Without it the processes of a launch on CPUs don't find each other, and each trains alone.
        "use_cpu": device.kind == "cpu",
        "report_to": "none",
        "disable_tqdm": not (sys.stderr.isatty() or in_notebook()),  # a line for each log instead
        "save_total_limit": 2,
        "dataloader_pin_memory": device.kind == "cuda",  # elsewhere torch warns and doesn't
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
    if metric := train.get("metric_for_best_model"):
        # transformers' default says that more is better of loss/think, as of all but `loss`.
        defaults["greater_is_better"] = not lower_is_better(metric.removeprefix("eval_"))
    return with_rows_of_checkpoint(stage, {**defaults, **train, **owned}, work)


@contextmanager
def refusals_by_libraries(stage: TrainingStage) -> Iterator[None]:
    """Turn what TRL, transformers and PEFT say against a stage's values into one message.

    Raises:
        ConfigError: one of them refused while model, optimizer and trainer were made.
    """
    try:
        yield
    except DualignError:
        raise
    except (ImportError, KeyError, NotImplementedError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"stage {stage.name}: refused before the first step: {words}") from error


def _check_optimizer(trainer: Trainer) -> None:
    """Make the optimizer for a parameter of its own, and drop it: its arguments are then known to fit."""
    settings = trainer.args
    if "layerwise" in settings.optim:
        return  # it hooks into the model
    kind, arguments = trainer.get_optimizer_cls_and_kwargs(settings, trainer.model)
    if isinstance(kind, type) and not {"params", "model"} & set(arguments):
        kind([torch.nn.Parameter(torch.zeros(1))], **arguments)


def _try_saving(trainer: Trainer) -> None:
    """Save all but the weights and delete it: what is refused then is refused before the first step."""
    folder = Path(trainer.args.output_dir) / "trial"
    if trainer.is_world_process_zero():
        try:
            trainer.processing_class.save_pretrained(folder)
            trainer.model.config.save_pretrained(folder)
            trainer.model.generation_config.save_pretrained(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def require_all_processes(seen: int) -> None:
    """Refuse a trainer that doesn't see every process that the launcher started.

    Raises:
        CheckpointError: it sees fewer: each would train alone, with plausible losses.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if seen != started:
        raise CheckpointError(
            f"{started} processes were started, but the trainer sees {seen}: each would train alone; "
            "check use_cpu and distributed_type in the accelerate config"
        )


def _adapters_to_float32(model: PreTrainedModel) -> None:
    """Undo TRL's cast of an adapter over NF4 to bfloat16; PEFT gives rows of tokens the base's type.

    At a rate of 1e-6 most of A's updates would round away, and the scaler of fp16 autocast takes no
    gradients of 16 bits. PEFT loads what was saved in float32, too.
    """
    quantized = getattr(model, "is_loaded_in_4bit", False)
    for name, parameter in model.named_parameters():
        if TOKENS in name or (quantized and "lora_" in name):
            parameter.data = parameter.data.float()


def prepare_trainer(trainer: SavesCheckpoints, stage: TrainingStage) -> None:
    """Add our callbacks in place of those that print dicts, and activate the policy's adapters."""
    require_all_processes(trainer.args.world_size)
    if stage.async_checkpoints:
        trainer.save_in_background()
    _adapters_to_float32(trainer.model)
    _check_optimizer(trainer)
    _try_saving(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.add_callback(progress_callback(trainer.args))
    trainer.add_callback(MarkCompleteCheckpoints(trainer))
    trainer.add_callback(TellProgress(Path(trainer.args.output_dir).parent))
    ranks = Path(trainer.args.output_dir) / "ranks"
    trainer.add_callback(EndHangs(ranks, seconds_to_a_hang(stage)))
    add_trackers(trainer, stage)
    if isinstance(trainer.model, PeftModel) and frozen_adapters(trainer.model):
        if _TRL_REFERENCE in trainer.model.peft_config:
            trainer.model.delete_adapter(_TRL_REFERENCE)
        activate_policy_adapters(trainer.model)
        trainer.add_callback(RestoreAdaptersOnResume())
    if stage.lora and stage.lora.loraplus_lr_ratio is not None:
        set_adapter_rates(trainer, stage.lora.loraplus_lr_ratio)


def save_log(trainer: Trainer, work: Path) -> None:
    """Write log.jsonl on rank 0."""
    if trainer.is_world_process_zero():
        write_log(trainer.state, work)


def save_result(
    trainer: Trainer,
    stage: TrainingStage,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
) -> dict[str, Any]:
    """Write weights or adapter, tokenizer and template into `work`; load them again and compare.

    Returns:
        The checks for run.json: `reload_max_logit_difference`, `largest_logit`, `saved`.

    Raises:
        TrainingError: a trained tensor isn't finite.
        CheckpointError: the logits of what was saved differ from the live model's.
    """
    sync_special_tokens(trainer.model, tokenizer)
    raise_text_limit(tokenizer, stage.context)
    if stage.lora is None:
        _save_weights(trainer, work)
    else:
        _save_adapters(trainer, work / CHECKPOINTS / "adapter")
    if trainer.is_world_process_zero():
        if stage.lora is not None:
            _require_finite(work / CHECKPOINTS / "adapter")
            _publish_adapter(trainer.model, work / CHECKPOINTS / "adapter", stage, source, work)
        tokenizer.save_pretrained(work)
        trainer.model.generation_config.save_pretrained(work)
        _require_finite(work)
    trainer.accelerator.wait_for_everyone()
    saved = "weights" if stage.lora is None else stage.save or "adapter"
    return {"saved": saved} | (_verify(trainer, stage, work) if stage.verify_reload else {})


def _require_finite(folder: Path) -> None:
    broken = non_finite_tensors(folder)
    if broken:
        name, count = next(iter(broken.items()))
        raise TrainingError(
            f"{folder}: {len(broken)} trained tensors hold NaN or infinite values, such as {name} with {count}; "
            "nothing was published; try a lower train.learning_rate or train.max_grad_norm: 1.0"
        )


def _save_weights(trainer: Trainer, work: Path) -> None:
    """Gather the weights from all ranks and write them.

    A tied head is left out: gathering under ZeRO makes a copy of it.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else ()
    # torch.compile puts the model into a module of this name.
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    weights = {name: tensor for name, tensor in state.items() if name not in tied}
    model.save_pretrained(work, state_dict=weights)


def _save_adapters(trainer: Trainer, folder: Path) -> None:
    """Write the adapters as PEFT has them; transformers leaves FSDP's sharded ones to its checkpoints."""
    if not trainer.is_fsdp_enabled:
        trainer.save_model(str(folder))
        return
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        model.save_pretrained(folder, state_dict=state)


def _publish_adapter(
    model: PreTrainedModel, trained: Path, stage: TrainingStage, source: ModelSource, work: Path
) -> None:
    """Write one adapter on the original base, or the weights with it folded in.

    Its ranks are those of the earlier stage's adapter, those of the trained one, and of its start if
    that is taken away again.
    """
    shutil.rmtree(trained / REFERENCE_ADAPTER, ignore_errors=True)
    if stage.new_tokens:
        leave_out_resized_base(trained)
    before = [] if source.adapter is None else [source.adapter]
    start = [trained / FROZEN_START] if (trained / FROZEN_START).is_dir() else []
    adapter = trained
    if before or start:
        adapter = trained.with_name("concatenated")
        concatenate([*before, trained, *start], adapter)
    target = work
    if stage.save == "merged":
        base = Path(source.base)
        if not base.is_dir():
            base = from_hub(source.base, revision=source.revision)
        assert stage.dtype != "auto", "expected a resolved stage"
        fold(base, adapter, work, dtype=stage.dtype)
        set_trained_keys(work / "config.json", model, stage.context)
        longer = last_token(read_json(adapter / "adapter_config.json")) >= _vocabulary(base)
        if longer or stage.context is not None:
            return  # on its base it would be another model
        target = work / "adapter"
        target.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, target / name)


def _vocabulary(base: Path) -> int:
    """Return how many tokens the model of a folder has rows for."""
    config = read_json(base / "config.json")
    return int((config.get("text_config") or config)["vocab_size"])


def _verify(trainer: Trainer, stage: TrainingStage, work: Path) -> dict[str, Any]:
    """Compare the logits of the saved model and the live one; {} on ranks other than 0."""
    ids_BT = _probe(trainer)
    nf4 = stage.quantization == "nf4"
    by_document = stage.attn_implementation == ATTENTION
    segments = document_segments([ids_BT.shape[1]]).to(ids_BT.device) if by_document else None
    live_BTV = logits_of(trainer.model_wrapped, ids_BT, segments=segments)
    if not trainer.is_world_process_zero():
        return {}
    attention = "" if by_document else stage.attn_implementation
    saved_BTV = saved_logits(work, ids_BT, dtype=stage.dtype, attention=attention, nf4=nf4)
    exact = stage.dtype == "float32" and not nf4 and _multiplies_exactly(trainer)
    checks = compare_logits(live_BTV, saved_BTV)
    name, bound = (
        ("reload_max_logit_difference", max(FLOOR, FLOAT32_BOUND * checks["largest_logit"]))
        if exact
        else ("reload_rms_share", ROUNDED_BOUND)
    )
    if not checks[name] <= bound:
        raise CheckpointError(
            f"{work}: the saved {stage.save or 'model'} gives other logits than the live model: {name} "
            f"{checks[name]:.3g}, bound {bound:.3g}, largest logit {checks['largest_logit']:.3g}; "
            "nothing was published"
        )
    return checks


def _multiplies_exactly(trainer: Trainer) -> bool:
    """Return whether the live model's products are float32: no autocast, and no TF32."""
    rounded = trainer.accelerator.mixed_precision != "no"
    return not (rounded or torch.backends.cuda.matmul.fp32_precision == "tf32")


def _probe(trainer: Trainer) -> Tensor:
    """Return the first tokens of a training row as ids [1, T]."""
    row = next(iter(trainer.train_dataset))
    names = ("input_ids",) if "input_ids" in row else ("prompt_ids", "chosen_ids", "answer_ids")
    ids = [token for name in names for token in row.get(name, ())]
    return torch.tensor([ids[:_PROBE_TOKENS]], device=trainer.accelerator.device)


def training_metrics(trainer: Trainer, stage: TrainingStage) -> dict[str, Any]:
    """Return a training stage's metrics for run.json: steps, tokens, losses, parameters, types, memory."""
    log = trainer.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    # Preference stages also log eval_num_tokens at the end, which is no evaluation.
    evaluations = [entry for entry in log if "eval_loss" in entry]
    metrics: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        # Under ZeRO-3 a parameter that no layer is using just now has 0 elements here.
        "trainable_parameters": sum(
            getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad
        ),
        "tokens": _last(log, "num_tokens"),
        "train_seconds": _last(log, "train_runtime"),
        "device": device_name(on_cpu=trainer.args.device.type == "cpu"),
        "dtype": stage.dtype,
        "arithmetic": _AUTOCAST.get(trainer.accelerator.mixed_precision, stage.dtype),
        "attention": stage.attn_implementation,
    }
    choice = choice_metrics(trainer)
    if evaluations:
        metrics["validation"] = _held_out_figures(evaluations, choice.get("published_step"))
    if trackers := tracker_records(trainer):
        metrics["trackers"] = trackers
    if trainer.args.device.type == "cuda":
        metrics["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return metrics | choice


def _held_out_figures(
    evaluations: Sequence[Mapping[str, Any]], published: int | None
) -> dict[str, Any]:
    """Return the figures of the published step, if one was chosen and measured, else the last ones."""
    measured = [entry for entry in evaluations if entry["step"] == published] or evaluations
    return {key: value for key, value in measured[-1].items() if key.startswith("eval_")}


def _last(log: Sequence[Mapping[str, Any]], key: str) -> Any:
    return next((entry[key] for entry in reversed(log) if key in entry), None)
