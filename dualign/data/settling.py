"""Rows whose tokens are counted -> which of them are trained on and held out, and the account.

Pure: training and doctor both end here, so that what doctor says of a mixture is what is trained.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualign.data.accounting import UNKNOWN_MODE, Group, account, grouped, tally_rows
from dualign.data.amounts import Rows, choose
from dualign.data.conversation import MODES
from dualign.data.draws import Indices, generator, held_out
from dualign.data.loading import Drawn
from dualign.data.screening import Screened
from dualign.data.settings import DataConfig
from dualign.data.sources import source_label
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
    about: Mapping[str, Any],
    owner: Indices,
    drawn: Sequence[Drawn],
    screened: Screened,
    data: DataConfig,
    seed: int,
) -> Settled:
    """Hold rows out, take each source's amount, shuffle, and count. `about` has the columns code,
    repairs, mode, tokens and supervised with an entry for each row, `owner` the number of its source.

    Raises:
        DataError: no row is left, or an amount that the rows don't hold.
    """
    labels = [source_label(source) for source in data.sources]
    kept = np.flatnonzero(about["code"] == "")
    unseen = _unseen(data, drawn, screened)
    _require_rows(kept, about["code"], unseen)
    validation = kept[held_out(len(kept), data.validation_rows, generator(seed, "validation"))]
    remaining = np.setdiff1d(kept, validation, assume_unique=True)
    mode = np.full(len(owner), -1)
    for number, name in enumerate(MODES):
        mode[about["mode"] == name] = number
    rows = Rows(owner=owner, mode=mode, tokens=about["tokens"], labels=labels)
    chosen = choose(remaining, rows, data, seed)
    for reason, lost in chosen.left_out.items():
        about["code"][lost] = reason
    _require_rows(chosen.train, about["code"], unseen)
    group, met = grouped(about["mode"], owner, labels)
    counted = account(tally_rows(group, met, about, chosen.train, validation, unseen))
    kept_groups = {met[number] for number in np.unique(group[about["code"] == ""])}
    groups = tuple(sorted(kept_groups, key=lambda key: (labels.index(key[1]), key[0])))
    place = np.array([groups.index(key) if key in groups else -1 for key in met])
    return Settled(
        train=generator(seed, "order").permutation(chosen.train),
        validation=validation,
        group=place[group],
        groups=groups,
        rows=counted | {"tasks": dict(screened.tasks), "removed": list(screened.samples)},
    )


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


def _require_rows(kept: Indices, codes: Any, unseen: Mapping[Group, Counter[str]]) -> None:
    if not len(kept):
        lost = Counter(str(code) for code in codes if code)
        for more in unseen.values():
            lost.update(more)
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(lost.items()))
        raise DataError(f"no row is left to train on. Left out: {listed}.")
