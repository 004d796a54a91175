"""The attention function that transformers calls in each layer, by the name `ATTENTION`.

    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation=ATTENTION)
    model(input_ids=ids_1T, position_ids=segments.positions[None], segments=segments)

The mask function of this name makes no mask. A padded batch, a call without segments and a layer
that asks for more than `Scores` says are errors: documents would see each other, or padding.
`support.py` finds out beforehand whether a model's layers can use it.

Shapes: T positions, N heads, G heads of keys, H size of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from dualign.attention.backends import choose_backend
from dualign.attention.scores import Scores
from dualign.attention.segments import Segments
from dualign.errors import CheckpointError

ATTENTION = "dualign"
_WAY_OUT = "set attn_implementation: sdpa"


def _segment_attention(
    module: torch.nn.Module,
    query_1NTH: Tensor,
    key_1GTH: Tensor,
    value_1GTH: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention of each segment's queries over its keys, [1, T, N, H].

    Raises:
        CheckpointError: the model doesn't pass segments on, the batch has rows or a mask, or the
            layer has dropout.
    """
    layer = type(module).__name__
    if segments is None:
        raise CheckpointError(
            f"{layer}: got no segments, so the documents of a batch would see each other; {_WAY_OUT}"
        )
    if attention_mask is not None or query_1NTH.shape[::2] != (1, segments.tokens):
        rows, tokens = query_1NTH.shape[::2]
        raise CheckpointError(
            f"{layer}: expected one flat row of {segments.tokens} tokens without a mask, found {rows} rows of "
            f"{tokens}{' and a mask' if attention_mask is not None else ''}; {_WAY_OUT} for padded rows"
        )
    if dropout:
        raise CheckpointError(
            f"{layer}: has dropout {dropout:g} in its attention, which can't be isolated; {_WAY_OUT}"
        )
    scores = Scores(scale=scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
    query_1NTH, key_1GTH, value_1GTH = _computed_in(query_1NTH, key_1GTH, value_1GTH)
    backend = choose_backend(query_1NTH, value_1GTH, scores)
    return backend.attend(query_1NTH, key_1GTH, value_1GTH, segments, scores).contiguous(), None


def _computed_in(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three in one type: autocast's, which rotary embeddings leave, or the values'."""
    device = query.device.type
    dtype = value.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _no_mask(attention_mask: Tensor | None = None, **_: Any) -> None:
    """Make no mask, as segments say who sees what.

    Raises:
        CheckpointError: the batch is padded.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise CheckpointError(
            "padded rows with attention by document: the padding would be seen; lay the documents "
            f"flat and pass segments, or {_WAY_OUT}"
        )


# Under torch.compile the loop over segments would be compiled anew for each batch's lengths.
_disable: Callable[..., Any] = torch.compiler.disable
AttentionInterface.register(ATTENTION, _disable(_segment_attention))
AttentionMaskInterface.register(ATTENTION, _no_mask)
