"""How many tokens each source and mode gets, so that the shares come out that the recipe asks for.

Rows are only ever left out to reach a share, never repeated. Of all the ways to reach the shares, the
one with the most tokens is taken.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dualign.data.conversation import MODES
from dualign.data.seeds import Indices
from dualign.errors import DataError

Tokens = NDArray[np.float64]
"""S sources, M modes (in the order of MODES)."""
_STEPS = 60


def wanted_tokens(have_SM: Tokens, shares: Sequence[float | None], labels: Sequence[str]) -> Tokens:
    """Tokens of each source when `shares` are kept and the sources without one stay as they are.

    have 1000, 5000 with shares None, 0.5 -> 1000, 1000
    """
    have: Tokens = have_SM.sum(axis=1)
    asked = np.array([share or 0.0 for share in shares])
    free = np.array([share is None for share in shares])
    if free.all():
        return have
    total = have[free].sum() / (1 - asked.sum()) if free.any() else (have / asked).min()
    wanted: Tokens = np.where(free, have, asked * total)
    for source, label in enumerate(labels):
        if wanted[source] > have[source] * (1 + 1e-9):
            others = total - wanted[source]
            largest = have[source] / (have[source] + others)
            raise DataError(
                f"source {label}: a share of {asked[source]:g} beside the {others:,.0f} tokens of "
                f"the others is {wanted[source]:,.0f} tokens, its rows hold {have[source]:,.0f}. "
                f"Ask for at most {largest:.3g}, or take less of the others (weight, tokens)."
            )
    return wanted


def mixed_tokens(
    have_SM: Tokens,
    shares: Sequence[float | None],
    mix: Mapping[str, float],
    labels: Sequence[str],
) -> Tokens:
    """Tokens of each source in each mode when the modes get the parts of `mix` and sources their
    shares. Sources without a share give in proportion to what they have.

    have [[900, 0], [0, 100]] with a mix of 0.5, 0.5 -> [[100, 0], [0, 100]]
    """
    asked = np.array([mix.get(mode, 0.0) for mode in MODES])
    for place, mode in enumerate(MODES):
        if asked[place] and not have_SM[:, place].sum():
            raise DataError(
                f"mix: {mode} is to have {asked[place]:g} of the tokens, but no row that is kept "
                f"is {mode} (sources: {', '.join(labels)})"
            )
    free = [source for source, share in enumerate(shares) if share is None]
    named = [source for source, share in enumerate(shares) if share is not None]
    pools = np.array([have_SM[free].sum(axis=0), *(have_SM[source] for source in named)])
    known = [shares[source] or 0.0 for source in named]
    parts = np.array([1 - sum(known), *known]).clip(0)
    total = _largest(pools, parts, float(asked[0]))
    if total <= 0:
        raise DataError(
            f"mix and the shares of the sources can't both be had: think {asked[0]:g}, "
            + ", ".join(f"{labels[source]} {shares[source]:g}" for source in named)
            + ". A source can only give modes that its rows have. Change one of them."
        )
    wanted = np.zeros_like(have_SM)
    given = _split(pools, parts * total, float(asked[0]) * total)
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted[free] = np.nan_to_num(have_SM[free] * (given[0] / pools[0]))
    wanted[named] = given[1:]
    return wanted


def take(lengths: Indices, tokens: float) -> int:
    """How many of the first rows come nearest to `tokens`."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    after = int(np.searchsorted(ends, tokens))
    if after == len(ends):
        return len(lengths)
    return after - 1 if after and tokens - ends[after - 1] < ends[after] - tokens else after


def _largest(pools: Tokens, parts: Tokens, think: float) -> float:
    """The most tokens that can be had. A smaller total can always be had too, so it is halved to."""
    low, high = 0.0, float(pools.sum())
    if _fits(pools, parts, think, high):
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _fits(pools, parts, think, middle) else (low, middle)
    return low if low >= 1 else 0.0


def _fits(pools: Tokens, parts: Tokens, think: float, total: float) -> bool:
    least, most = _range(pools, parts * total)
    slack = 1e-9 * total
    enough = (parts * total <= pools.sum(axis=1) + slack).all()
    return bool(enough and least.sum() - slack <= think * total <= most.sum() + slack)


def _range(pools: Tokens, rows: Tokens) -> tuple[Tokens, Tokens]:
    """The least and the most think tokens that each pool can give, of `rows` tokens in all."""
    least = (rows - pools[:, 1]).clip(0)
    return least, np.maximum(np.minimum(rows, pools[:, 0]), least)


def _split(pools: Tokens, rows: Tokens, think: float) -> Tokens:
    """Each pool's tokens by mode, `think` of them in all: all pools lean to it alike."""
    least, most = _range(pools, rows)
    room = (most - least).sum()
    lean = 0.0 if not room else min(max((think - least.sum()) / room, 0.0), 1.0)
    thinking = least + lean * (most - least)
    return np.stack([thinking, rows - thinking], axis=1).clip(0)
