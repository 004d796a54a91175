"""A longer context: the rotary settings of config.json, rewritten so that positions are stretched.

Example: `{length: 16384, rope: yarn}` on a model of 8,192 positions sets max_position_embeddings to
16384 and rope_parameters to yarn with a factor of 2 over 8,192 original positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.errors import CheckpointError

Rope = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": (),
    "dynamic": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
"""what each type reads besides factor and original length"""
_NEEDED = {"longrope": ("short_factor", "long_factor")}
_DEFAULTS = {"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}
_ORIGINAL = "original_max_position_embeddings"
_KEEPS_ORIGINAL = ("yarn", "longrope", "llama3")
"""types whose settings hold the original length; dynamic takes max_position_embeddings for it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextConfig:
    """How a model's positions are stretched to a length."""

    length: int
    """positions that the model is to have"""
    rope: Rope = "yarn"
    """yarn (arXiv 2309.00071), linear, dynamic (NTK), longrope, llama3, or default: rope_theta alone"""
    factor: float | None = None
    """how far positions are stretched; absent: length / original"""
    original: int | None = None
    """positions before any stretching; absent: what the model's config says"""
    rope_theta: float | None = None
    """another base of the rotary frequencies; absent: the model's"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """others of the type, as transformers names them: attention_factor, beta_fast, short_factor, ..."""

    def problems(self) -> list[tuple[str, str]]:
        issues = [
            (key, f"expected more than 0, found {value}")
            for key in ("length", "original", "rope_theta")
            if (value := getattr(self, key)) is not None and value <= 0
        ]
        if self.factor is not None and self.factor < 1:
            issues.append(("factor", f"expected 1 or more, found {self.factor}"))
        known = _SETTINGS[self.rope]
        for key in self.settings.keys() - known:
            expected = f"some of {', '.join(known)}" if known else "none"
            issues.append((f"settings.{key}", f"{self.rope} doesn't read it: expected {expected}"))
        for key in _NEEDED.get(self.rope, ()):
            if not isinstance(self.settings.get(key), list | tuple):
                issues.append((f"settings.{key}", f"{self.rope} needs a list of numbers"))
        if self.rope == "default" and (self.factor is not None or self.rope_theta is None):
            issues.append(("rope", "default stretches by rope_theta alone: give it, and no factor"))
        return issues


def rotary_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings of a config.json as transformers writes them since release 5.

    `{}` if it has none. Those of each type of layer stand under its name, where a model has several.
    """
    current = config.get("rope_parameters")
    if isinstance(current, Mapping) and current:
        return dict(current)
    scaling = config.get("rope_scaling") or {}
    if "rope_theta" not in config or not isinstance(scaling, Mapping):
        return {}
    return {
        **{key: value for key, value in scaling.items() if key != "type"},
        "rope_theta": config["rope_theta"],
        "rope_type": scaling.get("rope_type", scaling.get("type", "default")),
    }


def stretched_config(config: Mapping[str, Any], context: ContextConfig) -> dict[str, Any]:
    """Return a model's config.json with its positions stretched; nothing else changes.

    Of a model with other rotary settings for layers that slide, those of full attention change.

    Raises:
        CheckpointError: the model has no rotary positions, or can't be stretched so far in this way.
    """
    rotary = rotary_settings(config)
    positions = config.get("max_position_embeddings")
    if not rotary or not isinstance(positions, int):
        raise CheckpointError(
            f"context: a {config.get('model_type')} model has no rotary positions in its config.json; "
            "its context can't be stretched"
        )
    layers = [key for key, value in rotary.items() if isinstance(value, Mapping)]
    if layers and "full_attention" not in layers:
        raise CheckpointError(
            f"context: the rotary settings are those of {', '.join(layers)}: expected full_attention among them"
        )
    present = rotary["full_attention"] if layers else rotary
    length, changed = _stretched(present, positions, context)
    others = ("rope_theta", "rope_scaling")
    result = {key: value for key, value in config.items() if key not in others}
    result["max_position_embeddings"] = length
    result["rope_parameters"] = {**rotary, "full_attention": changed} if layers else changed
    if _ORIGINAL in config:  # transformers prefers it to that of the settings (Phi-3)
        result[_ORIGINAL] = changed.get(_ORIGINAL, config[_ORIGINAL])
    return result


def _stretched(
    rotary: Mapping[str, Any], positions: int, context: ContextConfig
) -> tuple[int, dict[str, Any]]:
    """Return max_position_embeddings and the rotary settings."""
    original = context.original or _original_length(rotary, positions)
    theta = context.rope_theta or rotary["rope_theta"]
    kept = {key: rotary[key] for key in ("partial_rotary_factor",) if key in rotary}
    changed = {"rope_type": context.rope, "rope_theta": theta, **kept}
    if context.rope == "default":
        return context.length, changed
    factor = context.factor or context.length / original
    if context.length > factor * original or factor <= 1:
        raise CheckpointError(
            f"context: {original:,} positions times a factor of {factor:g} are "
            f"{factor * original:,.0f}: expected more than {original:,}, and {context.length:,} (length) or more"
        )
    changed |= {"factor": float(factor), **_DEFAULTS.get(context.rope, {}), **context.settings}
    if context.rope in _KEEPS_ORIGINAL:
        changed[_ORIGINAL] = original
    # transformers and vLLM take it for the original length of dynamic, and stretch beyond it.
    return (original if context.rope == "dynamic" else context.length), changed


def _original_length(rotary: Mapping[str, Any], positions: int) -> int:
    """Return the positions of a model before it was stretched."""
    if _ORIGINAL in rotary:
        return int(rotary[_ORIGINAL])
    if rotary.get("rope_type") == "linear":
        return round(positions / float(rotary["factor"]))
    return positions
