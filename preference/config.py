"""The preference part of a recipe, and the part that builds preference pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dualign.config import nearest
from dualign.data.config import DataConfig
from dualign.preference.losses.table import LOSSES
from dualign.switch import Switch
from dualign.training.arguments import DPO_ARGUMENTS
from dualign.training.config import TrainingStage, training_problems

_LOSSES = ("apo_zero", "apo_down", "sigmoid", "ipo")
# TRL's f-divergences exist for these losses alone.
_OF_DIFFERENCES = tuple(name for name in _LOSSES if LOSSES[name].of_difference)
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
Reference = Literal["auto", "adapter", "cached", "copy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceStage(TrainingStage):
    """APO (arXiv 2408.06266), DPO or IPO on pairs of both modes."""

    data: DataConfig
    """the pairs; packing and supervise don't apply"""
    kind: Literal["preference"] = "preference"
    """what the stage does"""
    reference: Reference = "auto"
    """adapter: the policy, new adapter off; cached: log-probabilities once; copy: a frozen copy"""
    batch_tokens: int | None = None
    """most tokens of a batch, in place of train.per_device_train_batch_size; a shared prompt counts once"""
    train: Annotated[Mapping[str, Any], DPO_ARGUMENTS] = field(default_factory=dict)
    """every other field of TRL's DPOConfig (loss_type, beta, ...), by its own name"""

    def problems(self) -> list[tuple[str, str]]:
        issues = TrainingStage.problems(self) + training_problems(self.train, self.dtype, self.data)
        issues += _loss_problems(self.train)
        if self.reference == "adapter" and self.lora is None:
            issues.append(
                ("reference", "adapter needs lora: without one there is no adapter to switch off")
            )
        if self.reference == "copy" and self.lora is not None:
            issues.append(
                (
                    "reference",
                    "with lora the reference is the adapter switched off: a copy is waste",
                )
            )
        issues += _batch_problems(self.batch_tokens, self.train)
        if self.train.get("train_sampling_strategy") == "group_by_length":
            issues.append(
                ("train.train_sampling_strategy", "pairs have no length: set random or sequential")
            )
        if self.data.packing != "none":
            issues.append(("data.packing", "pairs aren't packed: set data.packing: none"))
        if self.data.supervise != "assistant":
            issues.append(("data.supervise", "pairs are always supervised on chosen and rejected"))
        return issues


def _batch_problems(batch_tokens: int | None, train: Mapping[str, Any]) -> list[tuple[str, str]]:
    if batch_tokens is None:
        return []
    if batch_tokens < 1:
        return [("batch_tokens", f"expected 1 or more, found {batch_tokens}")]
    return [
        (f"train.{name}", f"batch_tokens {reason}: remove one of the two")
        for name, reason in (
            ("per_device_train_batch_size", "bounds the batches"),
            ("auto_find_batch_size", "bounds the batches"),
            ("train_sampling_strategy", "draws the batches"),
        )
        if name in train
    ]


def _loss_problems(train: Mapping[str, Any]) -> list[tuple[str, str]]:
    losses = train.get("loss_type", "apo_zero")
    losses = [losses] if isinstance(losses, str) else losses
    if not isinstance(losses, list):
        return []  # the type is refused elsewhere
    issues = [
        ("train.loss_type", f"expected {', '.join(_LOSSES)}, found {loss!r}")
        for loss in losses or [None]
        if loss not in _LOSSES
    ]
    beta = train.get("beta", 0.1)
    if isinstance(beta, (int, float)) and beta <= 0:
        issues.append(("train.beta", f"expected more than 0, found {beta}"))
    if train.get("ld_alpha") is not None:
        issues.append(("train.ld_alpha", "length-desensitized log-probabilities aren't supported"))
    return issues + _weight_problems(train.get("loss_weights"), losses) + _divergence(train, losses)


def _weight_problems(weights: Any, losses: list[Any]) -> list[tuple[str, str]]:
    if not isinstance(weights, list):
        return []
    if len(weights) != len(losses):
        counts = f"{len(weights)} weights for {len(losses)} losses ({', '.join(map(str, losses))})"
        return [("train.loss_weights", f"expected a weight for each of loss_type, found {counts}")]
    if not all(isinstance(weight, (int, float)) for weight in weights):
        return [("train.loss_weights", f"expected numbers, found {weights!r}")]
    return []


def _divergence(train: Mapping[str, Any], losses: list[Any]) -> list[tuple[str, str]]:
    """Return what TRL refuses of an f-divergence, when the loss is computed first."""
    divergence = train.get("f_divergence_type", _DIVERGENCES[0])
    if divergence not in _DIVERGENCES:
        known = nearest(str(divergence), _DIVERGENCES)
        return [("train.f_divergence_type", f"unknown value {divergence!r}{known}")]
    anchored = [loss for loss in losses if loss not in _OF_DIFFERENCES]
    if divergence != _DIVERGENCES[0] and anchored:
        message = f"{divergence} is defined for {', '.join(_OF_DIFFERENCES)}, not for {anchored[0]}"
        return [("train.f_divergence_type", message)]
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsStage:
    """Preference pairs from a checkpoint: right against wrong, or a strong model against a weak."""

    name: str
    """names the stage and its run directory"""
    model: str
    """the checkpoint that answers; with rejected_model, the one that writes the chosen answers"""
    tasks: tuple[str, ...]
    """task files: prompts, expected answers and a verifier"""
    kind: Literal["pairs"] = "pairs"
    """what the stage does"""
    rejected_model: str | None = None
    """writes the rejected answers, like SmolLM3's weak model; absent: a verifier sorts the samples"""
    modes: tuple[Literal["think", "no_think"], ...] = ("think", "no_think")
    """each mode gets its own pairs"""
    rows: int | None = None
    """at most this many prompts of each task"""
    samples: int = 4
    """answers sampled for each prompt and mode"""
    pairs_per_prompt: int = 1
    """at most this many pairs from one prompt and mode"""
    max_new_tokens: int = 512
    """tokens sampled at most"""
    temperature: float = 1.0
    """of sampling"""
    top_p: float = 1.0
    """of sampling"""
    batch_tokens: int = 32768
    """tokens that are in memory at once: rows of a batch times (longest prompt + limit)"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """the weights' type in memory"""
    switch: Switch | None = None
    """what switches the modes; absent: that of each model's template"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if self.rejected_model is None and self.samples < 2:
            issues.append(("samples", "right against wrong needs 2 samples or more"))
        if self.rejected_model is None and self.temperature == 0:
            issues.append(("temperature", "greedy samples are all alike: expected more than 0"))
        for name in ("samples", "pairs_per_prompt", "max_new_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                issues.append((name, f"expected 1 or more, found {getattr(self, name)}"))
        return issues
