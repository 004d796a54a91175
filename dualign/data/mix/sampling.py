"""Choose the rows to train on: each source's amount, then the shares of sources and modes.

Rows are only ever left out to reach a share, never repeated. Of all the ways to reach the shares,
the one with the most tokens is taken.

Shapes: S sources, M modes (in the order of MODES).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import MODES
from dualign.data.seeds import Indices, indices_of, repeated, rng
from dualign.errors import DataError

Tokens = NDArray[np.float64]
_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCounts:
    """Arrays with an entry for each row: the index of its source, the index of its mode in MODES,
    its tokens. `labels` are the names of the sources.
    """

    source_index: Indices
    mode: Indices
    tokens: Indices
    labels: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Rows to train on, repeats included, source by source; and the rows that an amount left out,
    under the recipe key that did it.
    """

    train: Indices
    left_out: dict[str, Indices]


def sample(candidates: Indices, counts: TokenCounts, data: DataConfig, seed: int) -> Sample:
    """Return the rows of `candidates` (row indices) that the recipe's amounts and shares take.

    Every source's rows are shuffled first, so its first rows aren't favored. Sources of validation
    have no candidates, and no part in the shares.
    """
    numbers = [number for number, source in enumerate(data.sources) if not source.validation]
    sources = [data.sources[number] for number in numbers]
    data = replace(data, sources=tuple(sources))
    counts = replace(counts, labels=[counts.labels[number] for number in numbers])
    shuffled = [
        repeated(
            candidates[counts.source_index[candidates] == number],
            source.weight or 1.0,
            rng(seed, "repeats", number),
        )
        for number, source in zip(numbers, sources, strict=True)
    ]
    amounts = [
        _to_tokens(rows, source, counts) for rows, source in zip(shuffled, sources, strict=True)
    ]
    shares = _to_shares(amounts, counts, data)
    total = len(counts.source_index)
    left_out = _lost(shuffled, amounts, "tokens", total)
    left_out |= _lost(amounts, shares, "share" if data.mix is None else "mix", total)
    return Sample(train=np.concatenate(shares), left_out=left_out)


def _to_tokens(rows: Indices, source: SourceConfig, counts: TokenCounts) -> Indices:
    """Return the first rows that hold `source.tokens`, if set."""
    if source.tokens is None:
        return rows
    lengths = counts.tokens[rows]
    if lengths.sum() < source.tokens:
        raise DataError(
            f"source {source.path!r}: tokens: {source.tokens:,} asked, the rows that are kept hold "
            f"{lengths.sum():,}. Ask for fewer, or repeat it with a weight above 1."
        )
    return rows[: rows_for(lengths, source.tokens)]


def _to_shares(amounts: list[Indices], counts: TokenCounts, data: DataConfig) -> list[Indices]:
    """Return the rows of each source that bring sources and modes to the shares of the recipe."""
    shares = [source.share for source in data.sources]
    if data.mix is None:
        # All tokens in one column: raw text has no mode.
        have_S1 = np.array([[counts.tokens[rows].sum()] for rows in amounts], dtype=np.float64)
        target_S = source_targets(have_S1, shares, counts.labels)
        return [
            rows if share is None else rows[: rows_for(counts.tokens[rows], tokens)]
            for rows, share, tokens in zip(amounts, shares, target_S, strict=True)
        ]
    plain = [bool((counts.mode[rows] < 0).any()) for rows in amounts]
    if any(plain):
        return _beside_text(amounts, plain, counts, data)
    have_SM = np.array([_tokens_by_mode(rows, counts) for rows in amounts])
    target_SM = mode_targets(have_SM, shares, data.mix, counts.labels)
    parts: list[list[Indices]] = [[] for _ in amounts]
    for mode in range(len(MODES)):
        # What rounding to whole rows owes goes to the next source: a mode is off by half a row at most.
        carried = 0.0
        for source, rows in enumerate(amounts):
            in_mode = rows[counts.mode[rows] == mode]
            target = target_SM[source, mode]
            count = rows_for(counts.tokens[in_mode], max(0.0, target + carried))
            carried += target - counts.tokens[in_mode[:count]].sum()
            parts[source].append(in_mode[:count])
    return [np.concatenate(part) for part in parts]


def _beside_text(
    amounts: list[Indices], plain: list[bool], counts: TokenCounts, data: DataConfig
) -> list[Indices]:
    """Return the rows of each source where some (`plain`) are raw text, which has no mode: they give
    all that they were asked for, and mix and shares hold among the others.
    """
    parts = dict(enumerate(amounts))
    others = [number for number in parts if not plain[number]]
    if not others:
        raise DataError("mix: every source holds raw text, which has no mode to weigh: remove it")
    for number in parts:
        if plain[number] and data.sources[number].share is not None:
            raise DataError(
                f"source {counts.labels[number]}: share and data.mix are given, and raw text has no mode "
                "that mix could weigh. Say how much of it by weight, rows or tokens."
            )
    sources = tuple(data.sources[number] for number in others)
    labels = [counts.labels[number] for number in others]
    kept = _to_shares(
        [amounts[number] for number in others],
        replace(counts, labels=labels),
        replace(data, sources=sources),
    )
    return list((parts | dict(zip(others, kept, strict=True))).values())


def _tokens_by_mode(rows: Indices, counts: TokenCounts) -> Tokens:
    tokens, modes = counts.tokens[rows], counts.mode[rows]
    return np.array([tokens[modes == mode].sum() for mode in range(len(MODES))], dtype=np.float64)


def _lost(
    before: list[Indices], after: list[Indices], reason: str, total: int
) -> dict[str, Indices]:
    """Return {reason: rows that are in `before` but not at all in `after`}, of `total` rows."""
    lost = np.zeros(total, dtype=bool)
    for rows in before:
        lost[rows] = True
    for rows in after:
        lost[rows] = False
    return {reason: indices_of(lost)} if lost.any() else {}


def source_targets(
    have_SM: Tokens, shares: Sequence[float | None], labels: Sequence[str]
) -> Tokens:
    """Return tokens for each source [S]: `shares` are met, sources without one stay as they are.

    have 1000, 5000 with shares None, 0.5 -> 1000, 1000

    Raises:
        DataError: a source holds less than its share.
    """
    have_S: Tokens = have_SM.sum(axis=1)
    share_S = np.array([share or 0.0 for share in shares])
    free = np.array([share is None for share in shares])
    if free.all():
        return have_S
    total = have_S[free].sum() / (1 - share_S.sum()) if free.any() else (have_S / share_S).min()
    target_S: Tokens = np.where(free, have_S, share_S * total)
    for source, label in enumerate(labels):
        if target_S[source] > have_S[source] * (1 + 1e-9):
            others = total - target_S[source]
            largest = have_S[source] / (have_S[source] + others)
            raise DataError(
                f"source {label}: a share of {share_S[source]:g} beside the {others:,.0f} tokens of "
                f"the others is {target_S[source]:,.0f} tokens, its rows hold {have_S[source]:,.0f}. "
                f"Ask for at most {largest:.3g}, or take less of the others (weight, tokens)."
            )
    return target_S


def mode_targets(
    have_SM: Tokens,
    shares: Sequence[float | None],
    mix: Mapping[str, float],
    labels: Sequence[str],
) -> Tokens:
    """Return tokens for each source and mode [S, M]: modes get the parts of `mix`, sources their
    shares. Sources without a share give in proportion to what they have.

    have [[900, 0], [0, 100]] with a mix of 0.5, 0.5 -> [[100, 0], [0, 100]]

    Raises:
        DataError: mix and shares can't both be met.
    """
    mode_shares = np.array([mix.get(mode, 0.0) for mode in MODES])
    for index, mode in enumerate(MODES):
        if mode_shares[index] and not have_SM[:, index].sum():
            raise DataError(
                f"mix: {mode} is to have {mode_shares[index]:g} of the tokens, but no row that is kept "
                f"is {mode} (sources: {', '.join(labels)})"
            )
    think = float(mode_shares[0])
    free = [source for source, share in enumerate(shares) if share is None]
    fixed = [source for source, share in enumerate(shares) if share is not None]
    # One pool for all sources without a share, then one for each source with a share: [pools, M].
    pools = np.array([have_SM[free].sum(axis=0), *(have_SM[source] for source in fixed)])
    fixed_shares = [shares[source] or 0.0 for source in fixed]
    pool_shares = np.array([1 - sum(fixed_shares), *fixed_shares]).clip(0)
    total = _largest_total(pools, pool_shares, think)
    if total <= 0:
        raise DataError(
            f"mix and the shares of the sources can't both be had: think {think:g}, "
            + ", ".join(f"{labels[source]} {shares[source]:g}" for source in fixed)
            + ". A source can only give modes that its rows have. Change one of them."
        )
    target_SM = np.zeros_like(have_SM)
    split = _split_by_mode(pools, pool_shares * total, think * total)
    with np.errstate(invalid="ignore", divide="ignore"):
        target_SM[free] = np.nan_to_num(have_SM[free] * (split[0] / pools[0]))
    target_SM[fixed] = split[1:]
    return target_SM


def rows_for(lengths: Indices, tokens: float) -> int:
    """Return how many of the first rows come nearest to `tokens`."""
    totals = np.concatenate([[0], np.cumsum(lengths)])
    after = int(np.searchsorted(totals, tokens))
    if after == len(totals):
        return len(lengths)
    return after - 1 if after and tokens - totals[after - 1] < totals[after] - tokens else after


def _largest_total(pools: Tokens, shares: Tokens, think: float) -> float:
    """Return the largest feasible token total. Feasibility is monotone, so it is found by
    bisection.

    Pools [[900, 0], [300, 100]] (think, no_think) with shares 0.5, 0.5 and think 0.75. A total of
    400 takes 200 from each pool. The first gives 200 think tokens; the second can give 100 to 200
    of them. So 300 to 400 think tokens are possible, and 0.75 * 400 = 300 is among them. A total of
    500 takes 250 of each: 250 + (150 to 250) is 400 at least, more than 375: not feasible. The
    result is 400.
    """
    low, high = 0.0, float(pools.sum())
    if _is_feasible(pools, shares, think, high):
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _is_feasible(pools, shares, think, middle) else (low, middle)
    return low if low >= 1 else 0.0


def _is_feasible(pools: Tokens, shares: Tokens, think: float, total: float) -> bool:
    lowest, highest = _think_range(pools, shares * total)
    slack = 1e-9 * total
    enough = (shares * total <= pools.sum(axis=1) + slack).all()
    return bool(enough and lowest.sum() - slack <= think * total <= highest.sum() + slack)


def _think_range(pools: Tokens, totals: Tokens) -> tuple[Tokens, Tokens]:
    """Return the fewest and the most think tokens that each pool can give among `totals` tokens.

    A pool of 300 think and 100 no_think tokens that gives 250 gives 150 to 250 think tokens.
    """
    lowest = (totals - pools[:, 1]).clip(0)
    return lowest, np.maximum(np.minimum(totals, pools[:, 0]), lowest)


def _split_by_mode(pools: Tokens, totals: Tokens, think: float) -> Tokens:
    """Return each pool's tokens by mode [pools, M], `think` of them in all.

    Every pool is at the same point of its think range. Ranges 200..200 and 100..200 with think 350:
    both are half way through their ranges, so they give 200 and 150 think tokens.
    """
    lowest, highest = _think_range(pools, totals)
    room = (highest - lowest).sum()
    point = 0.0 if not room else min(max((think - lowest.sum()) / room, 0.0), 1.0)
    thinking = lowest + point * (highest - lowest)
    return np.stack([thinking, totals - thinking], axis=1).clip(0)
