"""Stored rows -> rows: JSON is parsed, classes get their names, and padding is dropped.

Padding is nulls that a table put into objects, since all objects of an Arrow column have the same keys.

    rows     {"city": "Oslo"}, {"table": 3}
    table    {"city": "Oslo", "table": null}, {"city": null, "table": 3}

A call or a schema with them would be learned with them. They are dropped at any depth of objects
that Arrow made. Objects that are kept as JSON, as those of JSON lines are, hold only nulls of their
own, which stay.

A table may number the words of a column (`datasets.ClassLabel`), in any order: 0 can be "desirable".
"""

import json
from collections.abc import Mapping
from typing import Any

import datasets

Structs = Mapping[str, Any]
"""The types of the columns that hold objects of Arrow's, JSON or classes, by name."""


def struct_columns(features: datasets.Features) -> Structs:
    """Return the columns that may hold padding, JSON or numbers of classes."""
    return {name: kind for name, kind in features.items() if _has_structs(kind)}


def without_padding(row: Mapping[str, Any], structs: Structs) -> Mapping[str, Any]:
    """Return the row with its JSON parsed, the names of classes, and without nulls of objects."""
    if not structs:
        return row
    return {
        key: _clean(value, structs[key]) if key in structs else value for key, value in row.items()
    }


def _has_structs(kind: Any) -> bool:
    return (
        _is_stored_json(kind)
        or isinstance(kind, datasets.ClassLabel | Mapping)
        or (isinstance(kind, datasets.List | datasets.LargeList) and _has_structs(kind.feature))
    )


def _is_stored_json(kind: Any) -> bool:
    return isinstance(kind, datasets.Json) and not kind.decode


def _clean(value: Any, kind: Any) -> Any:
    if value is None or not _has_structs(kind):
        return value
    if _is_stored_json(kind):
        return json.loads(value)
    if isinstance(kind, datasets.ClassLabel):  # -1 is how a set without answers fills the column
        return kind.names[value] if 0 <= value < len(kind.names) else None
    if isinstance(kind, Mapping):
        return {key: _clean(item, kind[key]) for key, item in value.items() if item is not None}
    return [_clean(item, kind.feature) for item in value]
