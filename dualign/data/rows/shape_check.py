"""Detect the shapes of a source's rows: over all of them, from the columns alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dualign.data.columns import paths_of
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.policies import stops
from dualign.data.rows.columns import column_of, mapped_row, shape_for
from dualign.data.rows.kinds import misplaced_row
from dualign.data.rows.known_columns import known_columns, samples_of
from dualign.data.rows.reading import as_yaml, columns_to_try
from dualign.data.rows.shapes import RowShape, shape_of, shapes_of
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices
from dualign.errors import DataError

UNKNOWN = "unknown"
_BATCH = 10_000
_COLUMNS_SHOWN = 6


def shapes_in(
    table: datasets.Dataset, *, pairs: bool, mapping: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Indices]:
    """Return the rows of each shape, by its name; `unknown` for the rest. Under a mapping, rows have
    the shape that it makes, or none.
    """
    if mapping:
        return _mapped_shapes_in(table, mapping, pairs=pairs)
    shapes = shapes_of(pairs=pairs)
    columns = {name for shape in shapes for name in (*shape.columns, *shape.excludes)}
    return _rows_by_shape(_filled_columns(table, columns), shapes, len(table))


def _mapped_shapes_in(
    table: datasets.Dataset, mapping: Mapping[str, Any], *, pairs: bool
) -> dict[str, Indices]:
    shape = shape_for(mapping, dict.fromkeys(table.column_names), pairs=pairs)
    if shape is None:
        return {UNKNOWN: np.arange(len(table))}
    columns: dict[str, tuple[str, ...]] = {}
    for name in shape.columns:
        paths = paths_of(mapping[name]) if name in mapping else (name,)
        columns[name] = tuple(column_of(path, table.column_names) for path in paths)
    of_file = _filled_columns(table, {column for some in columns.values() for column in some})
    constant = np.ones(len(table), dtype=bool)
    filled = {
        name: np.logical_or.reduce([of_file[column] for column in some]) if some else constant
        for name, some in columns.items()
    }
    return _rows_by_shape(filled, [replace(shape, excludes=())], len(table))


def _filled_columns(
    table: datasets.Dataset, columns: Collection[str]
) -> dict[str, NDArray[np.bool_]]:
    """Return in which rows a column has a value: in none if the table has no such column."""
    present = sorted(set(columns).intersection(table.column_names))
    filled = {name: np.zeros(len(table), dtype=bool) for name in columns}
    if present:
        batches = table.select_columns(present).with_format("arrow").iter(batch_size=_BATCH)
        for number, batch in enumerate(batches):
            for name in present:
                start = number * _BATCH
                filled[name][start : start + len(batch)] = batch.column(name).is_valid().to_numpy()
    return filled


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
    rows[UNKNOWN] = np.flatnonzero(unknown)
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
    by_shape = shapes_in(table, pairs=pairs, mapping=source.columns)
    unknown = by_shape.pop(UNKNOWN, None)
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
    row = mapped_row(table[int(unknown[0])], source.columns, pairs=pairs)
    other = {} if by_shape else known_columns(samples_of(table), pairs=not pairs)
    fault = misplaced_row(mapped_row(row, other, pairs=not pairs) if other else row, pairs=pairs)
    if stops(fault.code, source.on_fault, default=data.conflicts):
        what = (
            f"{len(unknown):,} of {len(table):,} rows have no known shape; the first has "
            f"{_shown(table, unknown[0])}: {fault}"
        )
        shape = shape_of(row, pairs=not pairs)
        other_stage = shape is not None and not shape.verbatim
        if not (source.columns or by_shape or other_stage) and (
            columns := columns_to_try(table, pairs=pairs)
        ):
            what += f". To try: columns: {as_yaml(columns)}"
        raise RowError(fault.code, what, source=source_label(source), row=int(rows[unknown[0]]))


def _shown(table: datasets.Dataset, index: int) -> str:
    row = {key: value for key, value in table[int(index)].items() if value is not None}
    shown = [f"{key}: {value!r:.40}" for key, value in list(row.items())[:_COLUMNS_SHOWN]]
    more = len(row) - len(shown)
    return (", ".join(shown) or "no values") + (f", and {more} more columns" if more else "")
