"""Which of the kept rows are trained on: each source's amount, then the shares of sources and modes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import MODES
from dualign.data.mix.shares import mixed_tokens, take, wanted_tokens
from dualign.data.seeds import Indices, generator, places, repeated
from dualign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The tokenised rows of all sources. Each array has an entry for each row: the number of its
    source, the place of its mode in MODES, its tokens.
    """

    owner: Indices
    mode: Indices
    tokens: Indices
    labels: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Rows to train on, repeats included, source by source; and for each row that an amount left
    out, the key of the recipe that did it.
    """

    train: Indices
    left_out: dict[str, Indices]


def choose(candidates: Indices, rows: Rows, data: DataConfig, seed: int) -> Chosen:
    """The rows of `candidates` (places in `rows`) that the recipe's amounts and shares take.

    Every source's rows are drawn in a random order of its own, so its first rows aren't favoured.
    """
    drawn = [
        _drawn(candidates[rows.owner[candidates] == number], source, number, seed)
        for number, source in enumerate(data.sources)
    ]
    amount = [
        _to_tokens(one, source, rows) for one, source in zip(drawn, data.sources, strict=True)
    ]
    chosen = _to_shares(amount, rows, data)
    count = len(rows.owner)
    lost = _minus(drawn, amount, "tokens", count)
    lost |= _minus(amount, chosen, "share" if data.mix is None else "mix", count)
    return Chosen(train=np.concatenate(chosen), left_out=lost)


def _drawn(rows: Indices, source: SourceConfig, number: int, seed: int) -> Indices:
    return repeated(rows, source.weight or 1.0, generator(seed, "repeats", number))


def _to_tokens(drawn: Indices, source: SourceConfig, rows: Rows) -> Indices:
    """The first rows that hold the tokens a source is to give, if it says so."""
    if source.tokens is None:
        return drawn
    lengths = rows.tokens[drawn]
    if lengths.sum() < source.tokens:
        raise DataError(
            f"source {source.path!r}: tokens: {source.tokens:,} asked, the rows that are kept hold "
            f"{lengths.sum():,}. Ask for fewer, or repeat it with a weight above 1."
        )
    return drawn[: take(lengths, source.tokens)]


def _to_shares(amount: list[Indices], rows: Rows, data: DataConfig) -> list[Indices]:
    """The rows of each source that bring sources and modes to the shares asked for."""
    shares = [source.share for source in data.sources]
    have = np.array([_by_mode(one, rows) for one in amount])
    if data.mix is None:
        wanted = wanted_tokens(have, shares, rows.labels)
        cut = zip(amount, shares, wanted, strict=True)
        return [
            one if share is None else one[: take(rows.tokens[one], tokens)]
            for one, share, tokens in cut
        ]
    wanted = mixed_tokens(have, shares, data.mix, rows.labels)
    parts: list[list[Indices]] = [[] for _ in amount]
    for mode in range(len(MODES)):
        carried = (
            0.0  # what rounding to whole rows owes, so that a mode is off by half a row at most
        )
        for source, one in enumerate(amount):
            mine = one[rows.mode[one] == mode]
            count = take(rows.tokens[mine], max(0.0, wanted[source, mode] + carried))
            carried += wanted[source, mode] - rows.tokens[mine[:count]].sum()
            parts[source].append(mine[:count])
    return [np.concatenate(part) for part in parts]


def _by_mode(one: Indices, rows: Rows) -> NDArray[np.float64]:
    tokens, modes = rows.tokens[one], rows.mode[one]
    return np.array([tokens[modes == mode].sum() for mode in range(len(MODES))], dtype=np.float64)


def _minus(
    before: list[Indices], after: list[Indices], reason: str, count: int
) -> dict[str, Indices]:
    """Those of `count` rows that are in `before` but not at all in `after`, under the reason that they
    went for.
    """
    lost = np.zeros(count, dtype=bool)
    for rows in before:
        lost[rows] = True
    for rows in after:
        lost[rows] = False
    return {reason: places(lost)} if lost.any() else {}
