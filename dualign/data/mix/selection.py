"""Tokenized rows -> which of them are trained on and held out, with their counts.

Pure: training and doctor both end here, so doctor reports on the mixture that is trained on.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualign.data.config import DataConfig
from dualign.data.conversation import MODES, UNKNOWN_MODE, Group
from dualign.data.mix.row_table import (
    CategoryColumn,
    RowTable,
    count_rows,
    group_rows,
    summarize_rows,
)
from dualign.data.mix.sampling import TokenCounts, sample
from dualign.data.mix.screening import ScreenedRows
from dualign.data.rows.loading import SampledRows
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices, held_out, indices_of, rng
from dualign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Indices of the rows that are trained on, in order, and of those held out.

    `group` has an entry for each row: its index in `groups`, or -1 for a row that was left out.
    `rows` is ROWS of run.json.
    """

    train: Indices
    validation: Indices
    group: Indices
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]


def select_rows(
    rows: RowTable,
    sampled: Sequence[SampledRows],
    screened: ScreenedRows,
    data: DataConfig,
    seed: int,
) -> Selection:
    """Hold rows out, take each source's amount, shuffle, and count. Rows that are left out get
    their code in `rows`.

    Raises:
        DataError: no row is left, or an amount that the rows don't hold.
    """
    labels = [source_label(source) for source in data.sources]
    untokenized = _untokenized(data, sampled, screened)
    candidates = rows.code.equals("")
    kept = indices_of(candidates)
    _require_rows(kept, rows.code, untokenized)
    is_validation = np.array([source.validation for source in data.sources])
    of_validation = is_validation[rows.source_index[kept]]
    pool = kept[~of_validation]
    drawn = pool[held_out(len(pool), data.validation_rows, rng(seed, "validation"))]
    validation = np.sort(np.concatenate([drawn, kept[of_validation]]))
    candidates[validation] = False
    taken = sample(indices_of(candidates), _token_counts(rows, labels), data, seed)
    for reason, left_out in taken.left_out.items():
        rows.code.assign(left_out, reason)
    _require_rows(taken.train, rows.code, untokenized)
    group, all_groups = group_rows(rows, labels)
    stats = count_rows(rows, group, all_groups, taken.train, validation, untokenized)
    counts = np.bincount(group[rows.code.equals("")], minlength=len(all_groups))
    kept_groups = {key for key, count in zip(all_groups, counts, strict=True) if count}
    groups = tuple(sorted(kept_groups, key=lambda key: (labels.index(key[1]), key[0])))
    index = [groups.index(key) if key in groups else -1 for key in all_groups]
    return Selection(
        train=rng(seed, "order").permutation(taken.train),
        validation=validation,
        group=np.array(index, dtype=np.int32)[group],
        groups=groups,
        rows=summarize_rows(stats)
        | {"tasks": dict(screened.tasks), "removed": list(screened.samples)},
    )


def _token_counts(rows: RowTable, labels: Sequence[str]) -> TokenCounts:
    mode = np.full(len(rows), -1, dtype=np.int8)
    for index, name in enumerate(MODES):
        mode[rows.mode.equals(name)] = index
    return TokenCounts(source_index=rows.source_index, mode=mode, tokens=rows.tokens, labels=labels)


def check_labels(labels: Sequence[str]) -> None:
    """Raise DataError if two sources have one name: they would share a line in every table."""
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise DataError(
            f"sources with the same name: {', '.join(repeated)}. Give each of them a label of its own."
        )


def _untokenized(
    data: DataConfig, sampled: Sequence[SampledRows], screened: ScreenedRows
) -> dict[Group, Counter[str]]:
    """Count the rows that weren't tokenized: not sampled, by recipe key; screened out, by code."""
    untokenized: dict[Group, Counter[str]] = {}
    for source, rows in zip(data.sources, sampled, strict=True):
        group = (UNKNOWN_MODE if source.mode == "row" else source.mode, source_label(source))
        if count := rows.total - len(rows.rows):
            untokenized[group] = Counter({"weight" if source.rows is None else "rows": count})
    for group, codes in screened.removed.items():
        untokenized[group] = untokenized.get(group, Counter()) + codes
    return untokenized


def _require_rows(
    kept: Indices, codes: CategoryColumn, untokenized: Mapping[Group, Counter[str]]
) -> None:
    if not len(kept):
        lost = codes.counts(~codes.equals(""))
        for counts in untokenized.values():
            lost.update(counts)
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(lost.items()))
        raise DataError(f"no row is left to train on. Left out: {listed}.")
