"""The attention function that transformers calls in each layer, by the name `ATTENTION`.

    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation=ATTENTION)
    model(input_ids=ids_1T, position_ids=segments.positions[None], segments=segments)

No mask is registered for the name, so transformers makes none. A model whose layers don't pass
`segments` on, and a call without them, is an error: documents would see each other.

Shapes: T positions, K keys, N heads, G heads of keys, H size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dualign.attention.segments import Segments
from dualign.errors import CheckpointError

ATTENTION = "dualign"


def _segment_attention(
    module: torch.nn.Module,
    query_1NTH: Tensor,
    key_1GTH: Tensor,
    value_1GTH: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention of each segment's queries over its keys, [1, T, N, H].

    Raises:
        CheckpointError: the model doesn't pass segments on.
    """
    if segments is None:
        raise CheckpointError(
            f"{type(module).__name__}: got no segments, so the documents of a batch would see each "
            "other; set attn_implementation: sdpa"
        )
    if segments.key_index is not None:
        key_1GTH = key_1GTH[:, :, segments.key_index]
        value_1GTH = value_1GTH[:, :, segments.key_index]
    queries = torch.split(query_1NTH, list(segments.query_lengths), dim=2)
    keys = torch.split(key_1GTH, list(segments.key_lengths), dim=2)
    values = torch.split(value_1GTH, list(segments.key_lengths), dim=2)
    outputs = [
        scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_mask(query.shape[2], key.shape[2], sliding_window, query.device),
            scale=scaling,
            enable_gqa=True,
        )
        for query, key, value in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return which keys [queries, keys] each query sees: those up to its own, at most `window`."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(
        keys, device=device
    )
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


AttentionInterface.register(ATTENTION, _segment_attention)
