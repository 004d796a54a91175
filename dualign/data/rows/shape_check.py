"""Which shape the rows of a source have: over all of them, from the columns alone."""

from collections.abc import Mapping

import datasets
import numpy as np
from numpy.typing import NDArray

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.policies import stops
from dualign.data.rows.shapes import PAIR_SHAPES, SHAPES
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices
from dualign.errors import DataError

UNKNOWN = "unknown"
_TURNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations (ShareGPT)": ("conversations",),
    "prompt + completion": ("prompt", "completion"),
    "instruction + output (Alpaca)": ("instruction", "output"),
    "text": ("text",),
}
_PAIRS: Mapping[str, tuple[str, ...]] = {"chosen + rejected": ("chosen", "rejected")}
_BATCH = 10_000


def shapes_in(table: datasets.Dataset, *, pairs: bool) -> dict[str, Indices]:
    """The places of the rows of each shape; a row has the first shape whose columns it fills."""
    known = _PAIRS if pairs else _TURNS
    columns = sorted({name for names in known.values() for name in names})
    there = [name for name in columns if name in table.column_names]
    filled = {name: np.zeros(len(table), dtype=bool) for name in columns}
    if there:
        batches = table.select_columns(there).with_format("arrow").iter(batch_size=_BATCH)
        for number, batch in enumerate(batches):
            for name in there:
                start = number * _BATCH
                filled[name][start : start + len(batch)] = batch.column(name).is_valid().to_numpy()
    return _sorted(filled, known, len(table))


def check_shapes(
    table: datasets.Dataset,
    rows: Indices,
    source: SourceConfig,
    data: DataConfig,
    *,
    pairs: bool,
) -> None:
    """Refuse a source whose rows have more than one shape, or one that isn't known.

    `rows` are the places of the table's rows in the source. Rows of no known shape are left to
    `on_fault`: they are dropped and counted where it says so.

    Raises:
        DataError: rows of several shapes, with the first row of each. RowError: an unknown shape.
    """
    found = shapes_in(table, pairs=pairs)
    unknown = found.pop(UNKNOWN, None)
    if len(found) > 1:
        listed = "; ".join(
            f"{name}: {len(places):,} rows, first row {rows[places[0]]} ({_shown(table, places[0])})"
            for name, places in found.items()
        )
        raise DataError(
            f"source {source.path!r}: rows of {len(found)} shapes. {listed}. "
            "Expected one: give each shape a source (a file or a split) of its own."
        )
    if unknown is not None and stops("unknown_shape", source.on_fault, default=data.conflicts):
        what = (
            f"{len(unknown):,} of {len(table):,} rows have no known shape; the first has "
            f"{_shown(table, unknown[0])}. Expected {PAIR_SHAPES if pairs else SHAPES}"
        )
        raise RowError(
            "unknown_shape", what, source=source_label(source), row=int(rows[unknown[0]])
        )


def _sorted(
    filled: Mapping[str, NDArray[np.bool_]], known: Mapping[str, tuple[str, ...]], count: int
) -> dict[str, Indices]:
    open_rows, found = np.ones(count, dtype=bool), {}
    for name, columns in known.items():
        mine = open_rows & np.logical_and.reduce([filled[column] for column in columns])
        if name == "text":  # half of another shape isn't plain text
            mine &= ~filled["prompt"] & ~filled["instruction"]
        open_rows &= ~mine
        found[name] = np.flatnonzero(mine)
    found[UNKNOWN] = np.flatnonzero(open_rows)
    return {name: places for name, places in found.items() if len(places)}


def _shown(table: datasets.Dataset, place: int) -> str:
    row = {key: value for key, value in table[int(place)].items() if value is not None}
    text = ", ".join(f"{key}: {value!r:.40}" for key, value in row.items())
    return text or "no values"
