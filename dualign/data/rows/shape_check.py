"""Detect the shapes of a source's rows: over all of them, from the columns alone."""

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
from numpy.typing import NDArray

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.policies import stops
from dualign.data.rows.kinds import misplaced_row
from dualign.data.rows.shapes import RowShape, shapes_of
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices
from dualign.errors import DataError

_UNKNOWN = "unknown"
_BATCH = 10_000
_COLUMNS_SHOWN = 6


def shapes_in(table: datasets.Dataset, *, pairs: bool) -> dict[str, Indices]:
    """Return the rows of each shape, by its name; `unknown` for the rest."""
    shapes = shapes_of(pairs=pairs)
    columns = {name for shape in shapes for name in (*shape.columns, *shape.excludes)}
    present = sorted(columns.intersection(table.column_names))
    filled = {name: np.zeros(len(table), dtype=bool) for name in columns}
    if present:
        batches = table.select_columns(present).with_format("arrow").iter(batch_size=_BATCH)
        for number, batch in enumerate(batches):
            for name in present:
                start = number * _BATCH
                filled[name][start : start + len(batch)] = batch.column(name).is_valid().to_numpy()
    return _rows_by_shape(filled, shapes, len(table))


def _rows_by_shape(
    filled: Mapping[str, NDArray[np.bool_]],
    shapes: Sequence[RowShape],
    count: int,
) -> dict[str, Indices]:
    unknown = np.ones(count, dtype=bool)
    rows = {}
    for shape in shapes:
        fits = unknown.copy()
        for name in shape.columns:
            fits &= filled[name]
        for name in shape.excludes:
            fits &= ~filled[name]
        unknown &= ~fits
        rows[shape.name] = np.flatnonzero(fits)
    rows[_UNKNOWN] = np.flatnonzero(unknown)
    return {name: indices for name, indices in rows.items() if len(indices)}


def check_shapes(
    table: datasets.Dataset,
    rows: Indices,
    source: SourceConfig,
    data: DataConfig,
    *,
    pairs: bool,
) -> None:
    """Refuse a source whose rows have more than one shape, or an unknown one.

    `rows` are the indices in the source of the table's rows. Rows of no known shape are left to
    `on_fault`: they are dropped and counted if it says so.

    Raises:
        DataError: rows of several shapes, with the first row of each. RowError: an unknown shape, or
        one of another stage.
    """
    by_shape = shapes_in(table, pairs=pairs)
    unknown = by_shape.pop(_UNKNOWN, None)
    if len(by_shape) > 1:
        listed = "; ".join(
            f"{name}: {len(indices):,} rows, first row {rows[indices[0]]} "
            f"({_shown(table, indices[0])})"
            for name, indices in by_shape.items()
        )
        raise DataError(
            f"source {source.path!r}: rows of {len(by_shape)} shapes. {listed}. "
            "Expected one: give each shape a source (a file or a split) of its own."
        )
    if unknown is None:
        return
    fault = misplaced_row(table[int(unknown[0])], pairs=pairs)
    if stops(fault.code, source.on_fault, default=data.conflicts):
        what = (
            f"{len(unknown):,} of {len(table):,} rows have no known shape; the first "
            f"has {_shown(table, unknown[0])}: {fault}"
        )
        raise RowError(fault.code, what, source=source_label(source), row=int(rows[unknown[0]]))


def _shown(table: datasets.Dataset, index: int) -> str:
    row = {key: value for key, value in table[int(index)].items() if value is not None}
    shown = [f"{key}: {value!r:.40}" for key, value in list(row.items())[:_COLUMNS_SHOWN]]
    more = len(row) - len(shown)
    return (", ".join(shown) or "no values") + (f", and {more} more columns" if more else "")
