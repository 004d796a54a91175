"""Why a training stage can't give what it promises on this machine, before its first step.

A recipe is checked where it is read, on any machine (`config`, `arguments`). Here is what depends on the machine, on
the files of the start model, or would refuse recipes of runs that are finished: `dualign plan` and `dualign run`
ask it for each stage that isn't done, before the first one starts.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from dualign.config import nearest
from dualign.training.arguments import of_trl
from dualign.training.config import TrainingStage
from dualign.training.parallelism import parallelism_issues
from dualign.training.precision import sharding_engine
from dualign.training.start_model import start_issues

Issue = tuple[str, str]
# Arguments that TRL and transformers take and then don't use: (value that changes nothing, why, when it is used).
_NEEDS: Mapping[str, tuple[Any, str, Callable[[Mapping[str, Any]], bool]]] = {
    "label_smoothing_factor": (
        0,
        "the loss is computed with the head, on supervised tokens, and isn't smoothed",
        lambda train: False,
    ),
    "f_alpha_divergence_coef": (
        0.5,
        "it belongs to f_divergence_type: alpha_divergence",
        lambda train: train.get("f_divergence_type") == "alpha_divergence",
    ),
    "ref_model_mixup_alpha": (0.6, "the reference is fixed", lambda train: False),
    "ref_model_sync_steps": (512, "the reference is fixed", lambda train: False),
    "liger_kernel_config": (None, "Liger's kernels aren't used", lambda train: False),
    "load_best_model_at_end": (
        False,
        "without validation no checkpoint is the best: it needs data.validation_rows and train.eval_strategy",
        lambda train: train.get("eval_strategy", "no") != "no",
    ),
    "optim_target_modules": (
        None,
        "it belongs to the GaLore and APOLLO optimizers",
        lambda train: str(train.get("optim")).startswith(("galore", "apollo")),
    ),
}
# Below it, the update of a bfloat16 weight points elsewhere than that of a float32 weight: of a Llama with weights of
# deviation 0.02, after 20 steps of AdamW, the cosine is 0.996 at 3e-4, 0.92 at 1e-4, 0.37 at 1e-5, 0.13 at 1e-6.
_LEAST_BFLOAT16_RATE = 2e-4
_STOCHASTIC_ROUNDING = "bf16_stochastic_round=true"
# (names, module, what to install): optimizers that come with a package of their own.
_OPTIMIZER_PACKAGES = (
    (r"galore_.*", "galore_torch", "galore-torch"),
    (r"apollo_.*", "apollo_torch", "apollo-torch"),
    (r"(ada)?lomo", "lomo_optim", "lomo-optim"),
    (r"grokadamw", "grokadamw", "grokadamw"),
    (r"schedule_free_.*", "schedulefree", "schedulefree"),
    (r"stable_adamw", "optimi", "torch-optimi"),
    (r"adamw_torch_[48]bit", "torchao", "torchao"),
    (r"adamw_anyprecision", "torchdistx", "torchdistx"),
    (r"adamw_torch_xla", "torch_xla", "torch-xla"),
    (r"adamw_torch_npu_fused", "torch_npu", "torch-npu"),
    (r"(paged_|ademamix|lion_|rmsprop_bnb|adamw_(bnb_)?8bit).*", "bitsandbytes", "bitsandbytes"),
)
_OPTIMIZERS_HERE = "adamw_torch_fused, adafactor and sgd need none"
# Tracker -> (module, what to install).
_TRACKERS = {
    "azure_ml": ("azureml", "azureml-core azureml-mlflow"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit flytekitplugins-deck-standard"),
    "kubeflow": ("kubeflow", "kubeflow"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
# Arguments of which every value that `argument_values` takes works on every machine.
_SAFE = frozenset(
    [
        "learning_rate",
        "weight_decay",
        "max_grad_norm",
        "warmup_steps",
        "max_steps",
        "num_train_epochs",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "optim",
        "logging_steps",
        "save_steps",
        "eval_steps",
        "save_strategy",
        "eval_strategy",
        "disable_tqdm",
        "save_total_limit",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "loss_type",
        "beta",
        "report_to",
        "use_cpu",
        "adam_beta1",
        "adam_beta2",
    ]
)
_DEFAULT_RATES = {"sft": 2e-5, "preference": 1e-6}  # TRL's


def issues(stage: Any) -> list[Issue]:
    """Return the reasons as (key, message)."""
    reasons = [*_rounding(stage, stage.train), *_without_effect(stage.train), *stage.unused()]
    reasons += [*_packages(stage), *_schedule(stage), *_pause(stage)]
    reasons += [*_sharded(stage), *parallelism_issues(stage), *start_issues(stage)]
    return reasons or list(_refused_by_libraries(stage))


def _pause(stage: Any) -> Iterator[Issue]:
    """Refuse a pause that never comes; where steps follow from the rows, `plan` knows them."""
    steps, pause = stage.train.get("max_steps", -1), stage.pause_at_step
    if pause is not None and 0 < steps < pause:
        yield "pause_at_step", pause_after_end(steps, pause)


def pause_after_end(steps: int, pause: int) -> str:
    """Return what is wrong with a pause after the last step."""
    return f"the stage has {steps} steps, found {pause}: expected an earlier step, or no pause"


def _without_effect(train: Mapping[str, Any]) -> Iterator[Issue]:
    """Refuse arguments that would change what is learned, if what they belong to were on."""
    for name, (idle, needs, when) in _NEEDS.items():
        if train.get(name, idle) not in (idle, None) and not when(train):
            yield (f"train.{name}", f"has no effect here: {needs}; remove it")


def _rounding(stage: TrainingStage, train: Mapping[str, Any]) -> Iterator[Issue]:
    """Refuse 16-bit weights that would be rounded back to what they were."""
    whole = stage.dtype in ("auto", "float32")  # auto halves frozen weights alone
    if stage.lora and stage.lora.needs_float32 and not whole:
        yield (
            f"lora.{stage.lora.needs_float32}",
            f"most of it is rounded away in {stage.dtype} weights: remove dtype, or set float32",
        )
    if whole or stage.lora or stage.rounded_updates or sharding_engine(stage) == "DEEPSPEED":
        return  # DeepSpeed keeps float32 copies of 16-bit weights
    way_out = (
        "set dtype: float32 and train.bf16: true (float32 weights, bfloat16 arithmetic), or "
        "rounded_updates: true if this is meant"
    )
    if stage.dtype == "float16":
        yield (
            "dtype",
            "full fine-tuning of float16 weights goes elsewhere than float32 (cosine of the change 0.1 at any "
            f"learning rate: AdamW's epsilon is 0 in float16); {way_out}",
        )
        return
    rate = float(train.get("learning_rate", _DEFAULT_RATES[stage.kind]))  # type: ignore[attr-defined]
    if rate < _LEAST_BFLOAT16_RATE and not _rounds_by_chance(train):
        yield (
            "dtype",
            f"bfloat16 weights at learning_rate {rate:g}: most updates are smaller than half of the last digit and "
            f"are lost (at 1e-6, 98 % of the weights never move, at 1e-5, 85 %); {way_out}",
        )


def _sharded(stage: TrainingStage) -> Iterator[Issue]:
    """Refuse settings of an adapter that need whole weights, where an engine holds shards of them."""
    engine = sharding_engine(stage)
    if engine is None or stage.lora is None:
        return
    if stage.lora.takes_from_base:
        start = stage.lora.init_lora_weights
        yield (
            "lora.init_lora_weights",
            f"{start} takes whole weights apart, and {engine} shards them: remove it",
        )
    if stage.lora.loraplus_lr_ratio is not None:
        yield (
            "lora.loraplus_lr_ratio",
            f"isn't tried under {engine}: remove it, or launch without it",
        )


def _rounds_by_chance(train: Mapping[str, Any]) -> bool:
    """Return whether torchao's optimizers round up or down by chance, so that small updates add up."""
    arguments = str(train.get("optim_args") or "").replace(" ", "").lower()
    ours = str(train.get("optim")) in ("adamw_torch_8bit", "adamw_torch_4bit")
    return ours and _STOCHASTIC_ROUNDING in arguments


def _packages(stage: TrainingStage) -> Iterator[Issue]:
    """Refuse what needs a package that isn't installed, or an accelerator that isn't there."""
    train = stage.train  # type: ignore[attr-defined]
    optimizer = str(train.get("optim", ""))
    for named, module, package in _OPTIMIZER_PACKAGES:
        if re.fullmatch(named, optimizer) and find_spec(module) is None:
            yield "train.optim", f"{optimizer} needs the package {package}; {_OPTIMIZERS_HERE}"
    trackers = train.get("report_to", "none")
    for tracker in [trackers] if isinstance(trackers, str) else trackers or ():
        if tracker not in ("all", "none") and not any(map(find_spec, _modules(tracker))):
            yield "train.report_to", _tracker_refusal(str(tracker))
    if train.get("ddp_backend") and not stage.launch and "WORLD_SIZE" not in os.environ:
        yield "train.ddp_backend", "is for several processes: set launch, or remove it"
    attention = stage.attn_implementation
    if attention == "flash_attention_2" and not any(map(find_spec, ("flash_attn", "kernels"))):
        message = "needs the package flash-attn: pip install flash-attn, or remove the key: auto takes the fastest that is here"
        yield "attn_implementation", f"{attention} {message}"
    if not _on_accelerator(train):
        if attention in ("flash_attention_2", "flex_attention"):
            yield (
                "attn_implementation",
                f"{attention} doesn't train on a CPU: remove the key, for auto",
            )
        if train.get("activation_offloading"):
            yield "train.activation_offloading", "moves activations from a GPU, and there is none"
    else:
        import torch

        yield from _several_gpus(stage, torch.cuda.device_count())


def _several_gpus(stage: TrainingStage, count: int) -> Iterator[Issue]:
    """Refuse one process with several GPUs: transformers would copy the model to each, and TRL refuses that."""
    if count > 1 and not stage.launch and "WORLD_SIZE" not in os.environ:
        yield (
            "launch",
            f"{count} GPUs are in sight of one process: set launch to an accelerate file "
            "(recipes/accelerate has three), or use one of them: CUDA_VISIBLE_DEVICES=0",
        )


def _modules(tracker: object) -> tuple[str, ...]:
    """Return the modules of which a tracker needs one."""
    return {"tensorboard": ("tensorboard", "tensorboardX")}.get(
        str(tracker), (_TRACKERS.get(str(tracker), (str(tracker), ""))[0],)
    )


def _tracker_refusal(tracker: str) -> str:
    if tracker not in _TRACKERS:
        return f"unknown value {tracker!r}{nearest(tracker, [*_TRACKERS, 'all', 'none'])}"
    return f"{tracker} isn't installed: pip install {_TRACKERS[tracker][1]}, or set none"


def _on_accelerator(train: Mapping[str, Any]) -> bool:
    if train.get("use_cpu"):
        return False
    import torch  # only where the answer matters; a second

    return bool(torch.accelerator.is_available())


def _schedule(stage: Any) -> Iterator[Issue]:
    """Refuse values of a scheduler's keys, by making it and going through a short schedule."""
    values = stage.train.get("lr_scheduler_kwargs")
    if not values:
        return
    import torch
    from transformers import get_scheduler

    rate = float(stage.train.get("learning_rate", _DEFAULT_RATES[stage.kind]))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    kind = stage.train.get("lr_scheduler_type", "linear")
    try:
        schedule = get_scheduler(kind, optimizer, 1, 10, dict(values))
        for _ in range(10) if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR) else ():
            optimizer.step()
            schedule.step()
    except (ArithmeticError, TypeError, ValueError) as error:
        yield "train.lr_scheduler_kwargs", f"{kind} with {dict(values)}: {error}"


def _refused_by_libraries(stage: Any) -> Iterator[Issue]:
    """Refuse what TRL's dataclass refuses of these values here, such as tf32 on an old GPU.

    Not for launched stages: making it joins the other processes.
    """
    if stage.launch or "WORLD_SIZE" in os.environ or _SAFE.issuperset(stage.train):
        return
    import torch
    from trl import DPOConfig, SFTConfig

    arguments = {"use_cpu": not torch.accelerator.is_available(), "bf16": False}
    arguments |= of_trl(stage.train)
    kind = DPOConfig if stage.kind == "preference" else SFTConfig
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind(output_dir="unused", **arguments)
    except (ImportError, KeyError, TypeError, ValueError) as error:
        yield "train", " ".join(str(error).split())
