"""Why a training stage can't give what it promises on this machine, before its first step.

A recipe is checked where it is read, on any machine (`config`, `arguments`). Here is what depends on the machine, on
the files of the start model, or would refuse recipes of runs that are finished: `dualign plan` and `dualign run`
ask it for each stage that isn't done, before the first one starts.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dualign.config import read_yaml
from dualign.training.config import TrainingStage

Issue = tuple[str, str]
# Arguments that TRL and transformers take and then don't use: (value that changes nothing, why, when it is used).
_NEEDS: Mapping[str, tuple[Any, str, Callable[[Mapping[str, Any]], bool]]] = {
    "label_smoothing": (
        0,
        "TRL smooths labels under robust, exo_pair and aot alone, not under apo_zero, apo_down, sigmoid or ipo",
        lambda train: False,
    ),
    "label_smoothing_factor": (
        0,
        "the loss is computed with the head, on supervised tokens, and isn't smoothed",
        lambda train: False,
    ),
    "discopop_tau": (0.05, "it belongs to the loss discopop", lambda train: False),
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
_DEFAULT_RATES = {"sft": 2e-5, "preference": 1e-6}  # TRL's


def issues(stage: Any) -> list[Issue]:
    """Return the reasons as (key, message)."""
    return [*_rounding(stage, stage.train), *_without_effect(stage.train)]


def _without_effect(train: Mapping[str, Any]) -> Iterator[Issue]:
    """Refuse arguments that would change what is learned, if what they belong to were on."""
    for name, (idle, needs, when) in _NEEDS.items():
        if train.get(name, idle) not in (idle, None) and not when(train):
            yield (f"train.{name}", f"has no effect here: {needs}; remove it")


def _rounding(stage: TrainingStage, train: Mapping[str, Any]) -> Iterator[Issue]:
    """Refuse 16-bit weights that would be rounded back to what they were."""
    if stage.dtype == "float32" or stage.lora or stage.rounded_updates or _deepspeed(stage):
        return
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


def _deepspeed(stage: TrainingStage) -> bool:
    """Return whether DeepSpeed trains the stage: it keeps float32 copies of 16-bit weights."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return True
    if stage.launch is None or not Path(stage.launch).is_file():
        return False
    kind = read_yaml(Path(stage.launch)).value.get("distributed_type")
    return str(kind).upper() == "DEEPSPEED"


def _rounds_by_chance(train: Mapping[str, Any]) -> bool:
    """Return whether torchao's optimizers round up or down by chance, so that small updates add up."""
    arguments = str(train.get("optim_args") or "").replace(" ", "").lower()
    ours = str(train.get("optim")) in ("adamw_torch_8bit", "adamw_torch_4bit")
    return ours and _STOCHASTIC_ROUNDING in arguments
