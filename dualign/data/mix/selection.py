"""Rows whose tokens are counted -> which of them are trained on and held out, and the account.

Pure: training and doctor both end here, so that what doctor says of a mixture is what is trained.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualign.data.config import DataConfig
from dualign.data.conversation import MODES, UNKNOWN_MODE, Group
from dualign.data.mix.amounts import Rows, choose
from dualign.data.mix.row_stats import account, grouped, tally_rows
from dualign.data.mix.row_table import Tokenised, Words
from dualign.data.mix.screening import Screened
from dualign.data.rows.loading import Drawn
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices, generator, held_out, places
from dualign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """Places of the rows that are trained on, in order, and of those held out. `group` has an entry for
    each row: its place in `groups`, or -1 for a row that was left out.
    """

    train: Indices
    validation: Indices
    group: Indices
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]


def settle(
    rows: Tokenised,
    drawn: Sequence[Drawn],
    screened: Screened,
    data: DataConfig,
    seed: int,
) -> Settled:
    """Hold rows out, take each source's amount, shuffle, and count. What is left out here gets its code
    in `rows`.

    Raises:
        DataError: no row is left, or an amount that the rows don't hold.
    """
    labels = [source_label(source) for source in data.sources]
    unseen = _unseen(data, drawn, screened)
    left = rows.code.holds("")
    kept = places(left)
    _require_rows(kept, rows.code, unseen)
    validation = kept[held_out(len(kept), data.validation_rows, generator(seed, "validation"))]
    left[validation] = False
    chosen = choose(places(left), _by_mode(rows, labels), data, seed)
    for reason, lost in chosen.left_out.items():
        rows.code.put(lost, reason)
    _require_rows(chosen.train, rows.code, unseen)
    group, met = grouped(rows, labels)
    counted = account(tally_rows(rows, group, met, chosen.train, validation, unseen))
    counts = np.bincount(group[rows.code.holds("")], minlength=len(met))
    kept_groups = {key for key, count in zip(met, counts, strict=True) if count}
    groups = tuple(sorted(kept_groups, key=lambda key: (labels.index(key[1]), key[0])))
    place = np.array([groups.index(key) if key in groups else -1 for key in met], dtype=np.int32)
    return Settled(
        train=generator(seed, "order").permutation(chosen.train),
        validation=validation,
        group=place[group],
        groups=groups,
        rows=counted | {"tasks": dict(screened.tasks), "removed": list(screened.samples)},
    )


def _by_mode(rows: Tokenised, labels: Sequence[str]) -> Rows:
    mode = np.full(len(rows), -1, dtype=np.int8)
    for number, name in enumerate(MODES):
        mode[rows.mode.holds(name)] = number
    return Rows(owner=rows.owner, mode=mode, tokens=rows.tokens, labels=labels)


def check_labels(labels: Sequence[str]) -> None:
    """Two sources of one name would be one line in every table."""
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:
        raise DataError(
            f"sources with the same name: {', '.join(twice)}. Give each of them a label of its own."
        )


def _unseen(
    data: DataConfig, drawn: Sequence[Drawn], screened: Screened
) -> dict[Group, Counter[str]]:
    """Rows that weren't tokenised: not drawn, by the key that drew; or screened out, by code."""
    unseen: dict[Group, Counter[str]] = {}
    for source, one in zip(data.sources, drawn, strict=True):
        group = (UNKNOWN_MODE if source.mode == "row" else source.mode, source_label(source))
        if count := one.total - len(one.rows):
            unseen[group] = Counter({"weight" if source.rows is None else "rows": count})
    for group, codes in screened.removed.items():
        unseen[group] = unseen.get(group, Counter()) + codes
    return unseen


def _require_rows(kept: Indices, codes: Words, unseen: Mapping[Group, Counter[str]]) -> None:
    if not len(kept):
        lost = codes.counted(~codes.holds(""))
        for more in unseen.values():
            lost.update(more)
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(lost.items()))
        raise DataError(f"no row is left to train on. Left out: {listed}.")
