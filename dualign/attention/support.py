"""Whether a model's layers can use attention by document: tried on the model without its numbers."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
)

from dualign.errors import CheckpointError

_TRIAL = "dualign_trial"
# Arguments of a layer that the function may leave aside: they say what segments say, or nothing.
_LEFT_ASIDE = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position"}
    | {"return_dict", "output_router_logits", "past_key_values", "past_key_value", "logits_to_keep"}
)

_REASONS: dict[tuple[type, str], str | None] = {}


@dataclass
class _Trial:
    """What the layers of a model hand to their attention function, in place of segments."""

    calls: list[dict[str, Any]] = field(default_factory=list)


def unsupported(config: PreTrainedConfig) -> str | None:
    """Return why a model's documents wouldn't be kept apart; None if they would.

    A model of this config is built on the meta device and called once; each of its layers has to
    hand on the segments, and to ask for what the config says and the function can do. A process
    tries a config once: a stage asks several times, and later stages have the model of earlier ones.
    """
    key = (type(config), config.to_json_string(use_diff=False))
    if key not in _REASONS:
        _REASONS[key] = _reason(config)
    return _REASONS[key]


def unshareable(config: PreTrainedConfig, parts: int) -> str | None:
    """Return why `parts` processes can't share the rows of a model, each with a part of the heads; None
    if they can.

    DeepSpeed takes the number and size of the heads from the config, and of the keys' heads gives each
    process some, or one that it has in common with others.
    """
    for kind in sorted(_rope_types(config.get_text_config()) & {"dynamic", "longrope"}):
        return f"its {kind} positions follow the longest row, of which a process sees a part"
    if reason := unsupported(config):
        return f"its documents can't be kept apart: {reason}"
    return _reason(config, lambda text, trial: _problems_of_parts(text, trial, parts))


def _problems_of_parts(config: PreTrainedConfig, trial: "_Trial", parts: int) -> Iterator[str]:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", config.hidden_size // heads)
    if heads % parts:
        yield f"its {heads} heads aren't a multiple of {parts}"
    if groups % parts and parts % groups:
        yield f"its {groups} heads of keys and {parts} processes: neither is a multiple of the other"
    for call in trial.calls:
        layer = call["layer"]
        if call["shapes"] != ((heads, size), (groups, size), (groups, size)):
            yield f"layer {layer} has heads of other numbers or sizes than its config says"
        if call.get("s_aux") is not None:
            yield f"layer {layer} has a sink for each head, which stay whole in every process"
    if getattr(config, "output_router_logits", None) is not None and config.router_aux_loss_coef:
        yield "the balance of its experts is a loss of whole rows: set train.router_aux_loss_coef: 0"


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """Return the kinds of rotary positions; some models have one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return {str(entry.get("rope_type", "default")) for entry in (settings, *nested)}


def _reason(
    config: PreTrainedConfig,
    problems: "Callable[[PreTrainedConfig, _Trial], Iterator[str]] | None" = None,
) -> str | None:
    refusals = []
    # A mask keeps transformers from looking for documents in the positions, which meta tensors don't
    # have. Granite 4 looks into the mask instead.
    for masked in (True, False):
        try:
            tried = _tried(copy.deepcopy(config), masked=masked)
            return next((problems or _problems)(*tried), None)
        except Exception as error:  # whatever its code raises: it isn't known to work
            refusals.append(" ".join(str(error).split())[:200])
    return f"its code refuses the trial: {refusals[0]}"


def _tried(config: PreTrainedConfig, *, masked: bool) -> tuple[PreTrainedConfig, _Trial]:
    """Call a model without numbers; returns the config of its text, and what its layers asked for."""
    trial = _Trial()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=_TRIAL, dtype=torch.bfloat16
        ).train()
    ids = torch.ones(1, 2, dtype=torch.long, device="meta")
    mask = {"attention_mask": ids} if masked else {}
    with torch.no_grad():
        model(input_ids=ids, position_ids=ids, segments=trial, use_cache=False, **mask)
    return model.config.get_text_config(), trial


def default_attention(config: PreTrainedConfig) -> str:
    """Return what transformers takes where nothing is named: sdpa, or eager where a class has none.

    It is sdpa, too, if no such model can be made: loading it says why.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    except Exception:  # whatever its code raises
        return "sdpa"
    return str(model.config._attn_implementation)


def _problems(config: PreTrainedConfig, trial: _Trial) -> Iterator[str]:
    layers = config.num_hidden_layers
    if len(trial.calls) != layers:
        yield f"{len(trial.calls)} of its {layers} layers hand segments to their attention"
    for call in trial.calls:
        yield from _problems_of_a_layer(config, call)


def _problems_of_a_layer(config: PreTrainedConfig, call: dict[str, Any]) -> Iterator[str]:
    layer = call.pop("layer")
    kind, window = _wanted(config, layer)
    if kind not in ("full_attention", "sliding_attention"):
        yield f"layer {layer} is {kind}"
    if call.pop("sliding_window", None) != window:
        yield f"layer {layer} keeps its window of {window} in a mask"
    if call.pop("dropout", 0.0):
        yield "it has dropout in its attention"
    if not call.pop("causal"):
        yield f"layer {layer} sees what comes later"
    for name in ("scaling", "softcap", "s_aux", "shapes"):
        call.pop(name, None)
    more = sorted(name for name, value in call.items() if value is not None)
    if set(more) - _LEFT_ASIDE:
        yield f"layer {layer} asks for {', '.join(sorted(set(more) - _LEFT_ASIDE))}"


def _wanted(config: PreTrainedConfig, layer: int) -> tuple[str, int | None]:
    """Return the kind of a layer by the config, and its window."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        used = window if getattr(config, "use_sliding_window", True) else None
        return ("sliding_attention" if used else "full_attention"), used
    return kinds[layer], window if kinds[layer] == "sliding_attention" else None


def _record_call(
    module: torch.nn.Module,
    query_1NTH: Tensor,
    key_1GTH: Tensor,
    value_1GTH: Tensor,
    attention_mask: Tensor | None = None,
    *,
    segments: Any = None,
    is_causal: bool | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """Note what a layer asks for; return values of the right shape, [1, T, N, H]."""
    if isinstance(segments, _Trial):
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        shapes = tuple(tensor.shape[1::2] for tensor in (query_1NTH, key_1GTH, value_1GTH))
        asked |= {"layer": getattr(module, "layer_idx", len(segments.calls)), "causal": causal}
        asked["shapes"] = tuple((heads, size) for heads, size in shapes)
        segments.calls.append({**asked, "attention_mask": attention_mask})
    repeats = query_1NTH.shape[1] // value_1GTH.shape[1]
    return value_1GTH.repeat_interleave(repeats, dim=1).transpose(1, 2).contiguous(), None


def _refuse_own_masks(*, use_vmap: bool = False, **_: Any) -> None:
    """Make no mask; a model that adds conditions to the causal one says so by `use_vmap`."""
    if use_vmap:
        raise CheckpointError("it has a mask of its own")


AttentionInterface.register(_TRIAL, _record_call)
AttentionMaskInterface.register(_TRIAL, _refuse_own_masks)
