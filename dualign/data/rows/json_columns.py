"""Rows of JSON -> columns of Arrow, with every value as it is written.

`datasets` infers columns from the first ten megabytes (a key that comes up later stops it), cuts
numbers to ten digits and drops half characters. So the columns are inferred here from all rows, and
lists and objects are stored as the text that `json` writes.

A lone surrogate, half of a character, has no place in UTF-8. It is stored as the noncharacter
LONE_SURROGATE, and the row is refused by that.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from dualign.errors import DataError

LONE_SURROGATE = "\ufdd0"
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_NUMBER = re.compile(r"\d{19}")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_BATCH_ROWS = 1_000
_LARGEST = 2**63
_BY_KIND = {
    frozenset({str}): "string",
    frozenset({bool}): "bool",
    frozenset({int}): "int64",
    frozenset({float}): "float64",
    frozenset({int, float}): "float64",
}
Row = Mapping[str, Any]
Kinds = dict[str, set[type]]
"""The types of each column's values, in the order in which the columns come up."""


class _BigInt:
    """The kind of integers that Arrow has no type for."""


def batches_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows by the thousand."""
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH_ROWS)):
        yield batch


def kinds_of(rows: Iterable[Row]) -> Kinds:
    """Return the kinds of some rows."""
    kinds: Kinds = {}
    for row in rows:
        for key, value in row.items():
            if key not in kinds:
                kinds[key] = set()
            kinds[key].add(_kind(value))
    return kinds


def joined_kinds(parts: Iterable[Kinds]) -> Kinds:
    """Return the kinds of rows that come in parts."""
    kinds: Kinds = {}
    for part in parts:
        for key, of_key in part.items():
            kinds[key] = kinds.get(key, set()) | of_key
    return kinds


def features_of(kinds: Kinds) -> datasets.Features:
    """Return a column for each key that any row has. Lists, objects and values of several kinds are
    kept as JSON.
    """
    return datasets.Features({key: _feature(of_key) for key, of_key in kinds.items()})


def to_arrow(rows: Sequence[Row], features: datasets.Features) -> pa.Table:
    """Return rows as a table.

    Raises:
        DataError: a number has more digits than JSON of Arrow takes.
    """
    columns = [
        _array([row.get(name) for row in rows], kind, name) for name, kind in features.items()
    ]
    return pa.Table.from_arrays(columns, schema=features.arrow_schema)


def write_rows(rows: Iterable[Row], features: datasets.Features, path: Path) -> None:
    """Write rows of JSON to an Arrow file."""
    with ArrowWriter(path=str(path), features=features) as writer:
        for batch in batches_of(rows):
            writer.write_table(to_arrow(batch, features))
        writer.finalize()


def _array(values: Sequence[Any], kind: Any, name: str) -> pa.Array:
    if isinstance(kind, datasets.Json):
        texts = [None if value is None else _text(value, name) for value in values]
        return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))
    if kind.dtype == "string":
        values = [None if value is None else _storable(value) for value in values]
    return pa.array(values, kind.pa_type)


def _text(value: Any, name: str) -> str:
    try:
        text = _storable(_ENCODER.encode(value))
        if _LONG_NUMBER.search(text):
            datasets.Json().decode_example(text)  # which knows integers of 64 bits alone
        return text
    except ValueError as error:
        raise DataError(
            f"column {name!r}: a number out of range ({error}). Write it as text."
        ) from error


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(LONE_SURROGATE, text)
    return text


def _kind(value: Any) -> type:
    if type(value) is int and not -_LARGEST <= value < _LARGEST:
        return _BigInt
    return type(value)


def _feature(kinds: set[type]) -> Any:
    kind = _BY_KIND.get(frozenset(kinds - {type(None)} or {str}))
    return datasets.Value(kind) if kind else datasets.Json()
