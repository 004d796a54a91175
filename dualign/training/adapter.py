"""A low-rank adapter of a training stage, by PEFT's own names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.checkpoints.patterns import has_whole_tensors, takes_from_base
from dualign.config import nearest

Issue = tuple[str, str]
_STARTS = ("gaussian", "orthogonal", "pissa", "pissa_niter_N", "olora")
_OTHER_STARTS = {
    "eva": "needs a pass over the data before training",
    "corda": "needs a pass over the data before training",
    "lora_ga": "needs a pass over the data before training",
    "loftq": "replaces the base by a quantized one",
    "mica": "freezes half of the adapter",
}

# Settings whose meaning depends on the model.
_OF_A_MODEL = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "init_lora_weights",
    "bias",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """A low-rank adapter, by PEFT's own names."""

    r: int = 16
    """rank"""
    lora_alpha: int = 32
    """the adapter's output is scaled by lora_alpha / r (or / sqrt(r) with use_rslora)"""
    lora_dropout: float = 0.0
    """dropout on the adapter's input"""
    target_modules: str | tuple[str, ...] = "all-linear"
    """which layers get an adapter; all-linear leaves out the output head"""
    use_dora: bool = False
    """weight-decomposed LoRA (arXiv 2402.09353)"""
    use_rslora: bool = False
    """rank-stabilized scaling (arXiv 2312.03732)"""
    exclude_modules: str | tuple[str, ...] = ()
    """layers of target_modules that get none: names, or a regular expression for whole paths"""
    layers_to_transform: tuple[int, ...] = ()
    """numbers of the layers that get an adapter, from 0; absent: all"""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """other ranks than r: name or regular expression of a path's end -> rank; the first that fits counts"""
    alpha_pattern: Mapping[str, int] = field(default_factory=dict)
    """other values than lora_alpha, in the same way"""
    modules_to_save: tuple[str, ...] = ()
    """modules that are trained as a whole, without an adapter, such as embed_tokens and lm_head"""
    init_lora_weights: bool | str = True
    """true, gaussian, orthogonal, pissa, pissa_niter_N or olora (docs/lora.md)"""
    bias: Literal["none", "all", "lora_only"] = "none"
    """which biases of the base are trained as well"""
    loraplus_lr_ratio: float | None = None
    """learning rate of B as a multiple of A's (LoRA+, arXiv 2402.12354)"""

    @property
    def whole_tensors(self) -> bool:
        """Whether tensors of the base are trained as a whole: they can't be added to another adapter's."""
        return has_whole_tensors({"modules_to_save": self.modules_to_save, "bias": self.bias})

    @property
    def takes_from_base(self) -> bool:
        """Whether it starts as the main part of the base's weights, so that the rest of them is frozen."""
        return takes_from_base(self.init_lora_weights)

    @property
    def needs_float32(self) -> str | None:
        """What of it would be rounded away in 16-bit weights."""
        if self.whole_tensors:
            return "modules_to_save" if self.modules_to_save else "bias"
        return "init_lora_weights" if self.init_lora_weights == "orthogonal" else None

    @property
    def names_layers(self) -> bool:
        """Whether it names what a model may not have."""
        plain = AdapterConfig()
        return any(getattr(self, key) != getattr(plain, key) for key in _OF_A_MODEL)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank that a layer may have."""
        return (self.r, *self.rank_pattern.values())

    def problems(self) -> list[Issue]:
        issues = [("r", f"expected a rank of 1 or more, found {self.r}")] if self.r < 1 else []
        if not 0 <= self.lora_dropout < 1:
            issues.append(("lora_dropout", f"expected 0 <= dropout < 1, found {self.lora_dropout}"))
        if self.target_modules == () or "lm_head" in self.target_modules:
            issues.append(
                (
                    "target_modules",
                    "expected layers other than lm_head: the fused head would not train it (modules_to_save does)",
                )
            )
        ratio = self.loraplus_lr_ratio
        if ratio is not None and ratio <= 0:
            issues.append(("loraplus_lr_ratio", f"expected more than 0, found {ratio:g}"))
        return [*issues, *self._expressions(), *self._layers(), *self._start()]

    def _expressions(self) -> Iterator[Issue]:
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if isinstance(value, str) and (error := _regex_error(value)):
                yield key, f"not a regular expression: {error}"
        for key, pattern in (
            ("rank_pattern", self.rank_pattern),
            ("alpha_pattern", self.alpha_pattern),
        ):
            for name, value in pattern.items():
                if error := _regex_error(name):
                    yield key, f"{name!r} is not a regular expression: {error}"
                if value < 1:
                    yield key, f"{name}: expected 1 or more, found {value}"

    def _layers(self) -> Iterator[Issue]:
        if not self.layers_to_transform:
            return
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            yield (
                "layers_to_transform",
                "PEFT takes numbers of layers beside names alone: write them into the regular expression "
                r"of target_modules, such as .*\.layers\.[0-7]\..*_proj",
            )
        if negative := [number for number in self.layers_to_transform if number < 0]:
            yield "layers_to_transform", f"expected numbers from 0, found {negative[0]}"

    def _start(self) -> Iterator[Issue]:
        start = self.init_lora_weights
        if start is True:
            return
        key = "init_lora_weights"
        if start is False:
            yield (
                key,
                "false starts from random changes of the model: expected true, or a start by name",
            )
        elif start in _OTHER_STARTS:
            yield key, f"{start} {_OTHER_STARTS[start]}: expected true, {', '.join(_STARTS)}"
        elif start not in _STARTS[:3] + _STARTS[4:] and not re.fullmatch(r"pissa_niter_\d+", start):
            yield key, f"unknown value {start!r}{nearest(start, ['true', *_STARTS])}"
        if start == "orthogonal" and (odd := [rank for rank in self.ranks if rank % 2]):
            yield key, f"orthogonal needs even ranks, found {odd[0]}"
        if self.takes_from_base and self.use_dora:
            yield key, f"{start} and use_dora both change the base: choose one"
        if self.takes_from_base and self.whole_tensors:
            yield (
                key,
                f"{start} is published as a sum of adapters, and {self.needs_float32} trains whole tensors, "
                "which can't be added up: choose one",
            )


def quantization_issues(adapter: AdapterConfig) -> Iterator[Issue]:
    """Yield what an adapter asks that a base in 4 bits can't give, as (key, message)."""
    if adapter.use_dora:
        yield "lora.use_dora", "DoRA needs the base's exact weights: remove quantization"
    if adapter.takes_from_base:
        start = f"{adapter.init_lora_weights} needs the base's exact weights"
        yield "lora.init_lora_weights", f"{start}: remove quantization"
    if needs := adapter.needs_float32:
        message = "needs float32 weights, and a stage over nf4 keeps the others in 16 bits"
        yield f"lora.{needs}", f"{message}: remove quantization, or the key"


def why_not_beside(adapter: AdapterConfig, parent: Mapping[str, Any]) -> str | None:
    """Return why an adapter can't be trained beside another one, by the other's adapter_config.json."""
    if parent.get("use_dora") or adapter.use_dora:
        return "DoRA rescales the base, so two adapters don't add up when one is DoRA"
    if adapter.whole_tensors:
        return (
            f"lora.{adapter.needs_float32} trains whole tensors, which can't be added to the adapter that the "
            "stage starts from"
        )
    return None


def _regex_error(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return ""
