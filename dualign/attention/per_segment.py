"""Attention of one segment after the other, on any device: by torch's SDPA, or in single steps.

Shapes: N heads, G heads of keys, T positions, Q queries and K keys of a run, H size of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dualign.attention.scores import Scores
from dualign.attention.segments import Segments

_Kernel = Callable[[Tensor, Tensor, Tensor, Callable[[], Tensor], Scores], Tensor]


def by_sdpa(
    query_1NTH: Tensor, key_1GTH: Tensor, value_1GTH: Tensor, segments: Segments, scores: Scores
) -> Tensor:
    """Return the attention of each segment [1, T, N, H], by torch's kernels."""
    return _each(query_1NTH, key_1GTH, value_1GTH, segments, scores, _sdpa)


def in_steps(
    query_1NTH: Tensor, key_1GTH: Tensor, value_1GTH: Tensor, segments: Segments, scores: Scores
) -> Tensor:
    """Return the attention of each segment [1, T, N, H], with softcap and sinks.

    A segment's scores are in memory at once, [N, Q, K] in float32.
    """
    return _each(query_1NTH, key_1GTH, value_1GTH, segments, scores, _steps)


def _each(
    query_1NTH: Tensor,
    key_1GTH: Tensor,
    value_1GTH: Tensor,
    segments: Segments,
    scores: Scores,
    kernel: _Kernel,
) -> Tensor:
    lengths = list(segments.query_lengths)
    queries, keys, values = (
        torch.split(tensor, lengths, dim=2) for tensor in (query_1NTH, key_1GTH, value_1GTH)
    )
    outputs = []
    for query, parts in zip(queries, segments.key_segments, strict=True):
        key, value = (
            tensors[parts[0]] if len(parts) == 1 else torch.cat([tensors[i] for i in parts], dim=2)
            for tensors in (keys, values)
        )
        runs = _runs(query.shape[2], key.shape[2], scores.window)
        pieces = torch.split(query, [queries for queries, _ in runs], dim=2)
        for piece, (_, seen) in zip(pieces, runs, strict=True):
            output_1NQH = kernel(
                piece,
                key[:, :, seen],
                value[:, :, seen],
                _mask_of(segments, piece.shape[2], seen, scores.window),
                scores,
            )
            outputs.append(output_1NQH.transpose(1, 2))  # as SDPA lays it out on a CPU
    return torch.cat(outputs, dim=1)


def _runs(queries: int, keys: int, window: int | None) -> list[tuple[int, slice]]:
    """Return runs of queries with the keys that they see: under a window, their cost is linear.

    8 queries and keys, a window of 2: 2 queries see keys 0 1, 2 see 1 2 3, 2 see 3 4 5, 2 see 5 6 7.
    """
    if window is None or window >= keys:
        return [(queries, slice(0, keys))]
    runs = []
    for start in range(0, queries, window):
        end = min(start + window, queries)
        first = max(0, keys - queries + start - window + 1)
        runs.append((end - start, slice(first, keys - queries + end)))
    return runs


def _mask_of(
    segments: Segments, queries: int, seen: slice, window: int | None
) -> Callable[[], Tensor]:
    keys = seen.stop - seen.start
    device = segments.positions.device

    def mask() -> Tensor:
        return segments.derive(
            ("mask", queries, keys, window), lambda: _mask(queries, keys, window, device)
        )

    return mask


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return which keys [Q, K] each query sees: those up to its own, at most `window`."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(
        keys, device=device
    )
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _sdpa(
    query_1NQH: Tensor,
    key_1GKH: Tensor,
    value_1GKH: Tensor,
    mask: Callable[[], Tensor],
    scores: Scores,
) -> Tensor:
    queries, keys = query_1NQH.shape[2], key_1GKH.shape[2]
    whole = queries == keys and (scores.window is None or scores.window >= keys)
    return scaled_dot_product_attention(
        query_1NQH,
        key_1GKH,
        value_1GKH,
        attn_mask=None if whole else mask(),
        is_causal=whole,
        scale=scores.scale,
        enable_gqa=query_1NQH.shape[1] != key_1GKH.shape[1],
    )


def _steps(
    query_1NQH: Tensor,
    key_1GKH: Tensor,
    value_1GKH: Tensor,
    mask: Callable[[], Tensor],
    scores: Scores,
) -> Tensor:
    """softmax(c tanh(q k / c), sinks) v, the softmax in float32."""
    heads, queries, size = query_1NQH.shape[1:]
    groups, keys = key_1GKH.shape[1:3]
    scale = size**-0.5 if scores.scale is None else scores.scale
    grouped = query_1NQH.reshape(1, groups, -1, size)  # heads that share their keys, as queries
    products = (grouped @ key_1GKH.transpose(2, 3) * scale).view(1, heads, queries, keys)
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    products = products.float().masked_fill(~mask(), -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(1, -1, 1, 1).expand(-1, -1, queries, -1)
        products = torch.cat([products, sinks], dim=3)
    shares = torch.softmax(products, dim=3)[..., :keys].to(value_1GKH.dtype)
    output = shares.reshape(1, groups, -1, keys) @ value_1GKH
    return output.view(1, heads, queries, -1)
