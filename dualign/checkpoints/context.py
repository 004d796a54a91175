"""A longer context: the rotary settings of config.json, rewritten so that positions are stretched.

Example: `{length: 16384, rope: yarn}` on a model of 8,192 positions sets max_position_embeddings to
16384 and rope_parameters to yarn with a factor of 2 over 8,192 original positions.

transformers, vLLM and llama.cpp read the result alike. vLLM multiplies max_position_embeddings by the
factor of linear and dynamic, as transformers' documentation asks for it, so there it stays the original.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

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
"""types whose settings hold the original length; the others take max_position_embeddings for it"""
_UNREAD_BY_VLLM = ("attention_factor", "mscale", "mscale_all_dim")


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
            if not _is_numbers(self.settings.get(key)):
                issues.append((f"settings.{key}", f"{self.rope} needs a list of numbers above 0"))
        issues += self._number_problems()
        if self.rope == "default" and (self.factor is not None or self.rope_theta is None):
            issues.append(("rope", "default stretches by rope_theta alone: give it, and no factor"))
        return issues

    def _number_problems(self) -> list[tuple[str, str]]:
        """Return what is no number among the settings that are one, or in the wrong order."""
        known = _SETTINGS[self.rope]
        values: dict[str, Any] = {
            key: value for key, value in self.settings.items() if key in known
        }
        issues = []
        for key, value in values.items():
            if key == "truncate" and not isinstance(value, bool):
                issues.append((f"settings.{key}", f"expected true or false, found {value!r}"))
            if key not in ("truncate", *_NEEDED.get(self.rope, ())) and not _is_number(value):
                expected = "expected a number above 0"
                issues.append((f"settings.{key}", f"{expected}, found {value!r}"))
        values = {**_DEFAULTS.get(self.rope, {}), **values}
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            least, most = values.get(low), values.get(high)
            if _is_number(least) and _is_number(most) and least >= most:
                message = f"expected more than {low} ({least}), found {most}"
                issues.append((f"settings.{high}", message))
        return issues

    def notes(self) -> list[str]:
        """Return in words what other programs read differently."""
        unread = [key for key in _UNREAD_BY_VLLM if self.settings.get(key) is not None]
        if unread:
            says = f"context: vLLM doesn't read {', '.join(unread)} of {self.rope}"
            return [f"warning: {says}, and would run another model"]
        if self.rope == "dynamic":
            return [
                "context: dynamic positions depend on the longest row in transformers; vLLM takes the "
                "longest that is possible, and llama.cpp can't read them"
            ]
        return []


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_number, value))


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


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return how many positions a model reaches by its config.json; None where that isn't known.

    With linear and dynamic rotary settings max_position_embeddings is what it had before.
    """
    text = config.get("text_config") or config
    positions = text.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    rotary = _of_full_attention(rotary_settings(text))
    kind = rotary.get("rope_type", "default")
    factor = rotary.get("factor")
    if not _stays_original(kind, text) or not isinstance(factor, int | float):
        return positions
    return math.floor(positions * factor)


def length_of_longest_row(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the type, and the length from which its frequencies depend on the longest row of a batch.

    None for types whose frequencies are fixed.
    """
    text = config.get("text_config") or config
    rotary = _of_full_attention(rotary_settings(text))
    kind = rotary.get("rope_type", "default")
    original = text.get(_ORIGINAL, rotary.get(_ORIGINAL, text.get("max_position_embeddings")))
    if kind not in ("dynamic", "longrope") or not isinstance(original, int):
        return None
    return kind, original


def _of_full_attention(rotary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a model's full attention, if each type of layer has its own."""
    full = rotary.get("full_attention", rotary)
    return full if isinstance(full, Mapping) else rotary


def _stays_original(rope: str, config: Mapping[str, Any]) -> bool:
    """Return whether max_position_embeddings is the length before stretching.

    Gemma 3's is the length after it, although its type is linear; vLLM makes that exception, too.
    """
    linear = rope == "linear" and "gemma3" not in str(config.get("model_type"))
    return linear or rope == "dynamic"


def stretched_config(config: Mapping[str, Any], context: ContextConfig) -> dict[str, Any]:
    """Return a model's config.json with its positions stretched; nothing else changes.

    Of a model with other rotary settings for layers that slide, those of full attention change.

    Raises:
        CheckpointError: the model has no rotary positions, or can't be stretched so far in this way.
    """
    if not rotary_settings(config):
        config = _with_defaults(config)
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
    changed = _stretched(present, positions, context)
    _require_fitting_factors(config, changed)
    stays = _stays_original(context.rope, config)
    length = (context.original or _original_length(present, positions)) if stays else context.length
    others = ("rope_theta", "rope_scaling")
    result = {key: value for key, value in config.items() if key not in others}
    result["max_position_embeddings"] = length
    result["rope_parameters"] = {**rotary, "full_attention": changed} if layers else changed
    if _ORIGINAL in config:  # transformers prefers it to that of the settings (Phi-3)
        result[_ORIGINAL] = changed.get(_ORIGINAL, config[_ORIGINAL])
    return result


def _with_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config with the base that transformers takes where it names none, as of the first Llamas."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        known = AutoConfig.for_model(config.get("model_type"), **fields).to_dict()
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError):
        return config
    filled = ("rope_parameters", "max_position_embeddings")
    return {**config, **{key: known[key] for key in filled if known.get(key)}}


def _stretched(rotary: Mapping[str, Any], positions: int, context: ContextConfig) -> dict[str, Any]:
    """Return the rotary settings."""
    original = context.original or _original_length(rotary, positions)
    if original > positions:
        raise CheckpointError(
            f"context: original is {original:,}, and the model has {positions:,} positions: expected as many at most"
        )
    theta = context.rope_theta or rotary["rope_theta"]
    kept = {key: rotary[key] for key in ("partial_rotary_factor",) if key in rotary}
    changed = {"rope_type": context.rope, "rope_theta": theta, **kept}
    if context.rope == "default":
        return changed
    factor = context.factor or context.length / original
    if context.length > factor * original or factor <= 1:
        raise CheckpointError(
            f"context: {original:,} positions times a factor of {factor:g} are "
            f"{factor * original:,.0f}: expected more than {original:,}, and {context.length:,} (length) or more"
        )
    if context.rope == "longrope" and factor * original != context.length:
        raise CheckpointError(
            f"context: longrope's attention is scaled by factor ({factor:g}) in transformers and by length / original "
            f"({context.length / original:g}) in vLLM: remove factor, or make them equal"
        )
    settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in context.settings.items()
    }
    changed |= {"factor": float(factor), **_DEFAULTS.get(context.rope, {}), **settings}
    if context.rope in _KEEPS_ORIGINAL:
        changed[_ORIGINAL] = original
    return changed


def _require_fitting_factors(config: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Refuse longrope's lists if they aren't of one number for each frequency of the model.

    Raises:
        CheckpointError: they are longer or shorter.
    """
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not (hidden and heads):
        return
    size = config.get("head_dim") or hidden // heads
    expected = int(size * changed.get("partial_rotary_factor", 1.0)) // 2
    for key in _NEEDED["longrope"]:
        count = len(changed.get(key, ())) or expected
        if count != expected:
            raise CheckpointError(
                f"context: settings.{key}: found {count} numbers, and the model has {expected} rotary frequencies"
            )


def _original_length(rotary: Mapping[str, Any], positions: int) -> int:
    """Return the positions of a model before it was stretched.

    Raises:
        CheckpointError: it isn't known.
    """
    if _ORIGINAL in rotary:
        return int(rotary[_ORIGINAL])
    if rotary.get("rope_type") == "linear":
        # Some models count the positions before (Vicuna), some those after (Gemma 3, DeepSeek Coder).
        raise CheckpointError(
            f"context: the model was stretched already, by linear, factor {rotary.get('factor')}; whether its "
            f"{positions:,} positions are those before or after isn't known: set original to those before"
        )
    return positions
