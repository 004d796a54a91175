"""A row of a file -> a row in one of SHAPES, as its source's `columns` says."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import datasets

from dualign.config import nearest
from dualign.data.columns import MESSAGE_NAMES, ROW_NAMES, paths_of, read_value, value_at
from dualign.data.config import SourceConfig
from dualign.data.rows.contents import MEDIA_KEYS
from dualign.data.rows.loss_flags import ROW_FLAGS
from dualign.data.rows.messages import MESSAGE_KEYS, ROLES
from dualign.data.rows.shapes import SHAPES, Row, RowShape, shapes_of
from dualign.errors import DataError

_MAIN = frozenset(name for shape in SHAPES for name in (*shape.columns, *shape.optional))
"""Columns that make a shape; those of another shape are no part of a mapped row."""
_TURNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "history")
_IN_TURN = ("messages", "conversations", "history")
_SIDE = ("system", "tools", "functions", "mode", "chat_template_kwargs", "label", "kto_tag")
_SPEAKERS = ("user", "assistant")
_TRACES = ("reasoning_content", "thinking", "reasoning")
_LOOKED_AT = 100
"""Rows in which a path must lead somewhere."""


def mapped_row(row: Row, columns: Mapping[str, Any], *, pairs: bool) -> Row:
    """Return the row with our names, as `columns` says; the row itself without a mapping.

    Columns that the mapping doesn't name keep their names, except those that would make another
    shape of the row.

    Raises:
        RowFault: a value that the mapping can't read.
    """
    if not columns:
        return row
    shape = shape_for(columns, row, pairs=pairs)
    of_row = [name for name in columns if name in ROW_NAMES and _is_of_row(name, shape)]
    values = {name: read_value(name, columns[name], row) for name in of_row}
    taken, main = _taken_columns(columns), _own_columns(columns, shape)
    kept = {
        name: value
        for name, value in row.items()
        if name not in taken and (name in main or name not in _MAIN)
    }
    mapped = kept | values
    fields = {name: columns[name] for name in columns if name in MESSAGE_NAMES}
    for name in _TURNS:
        if mapped.get(name) is not None and (fields or name in columns):
            mapped[name] = _with_names(mapped[name], fields, in_turn=name in _IN_TURN)
    is_for_all = "system" in columns and not paths_of(columns["system"])
    if is_for_all and any(_begins_with_system(mapped.get(name)) for name in _TURNS):
        mapped.pop("system", None)  # a text for all rows is for those that have none
    return mapped


def _begins_with_system(turns: Any) -> bool:
    first = next(iter(_as_list(turns)), None)
    speaker = first.get("role") or first.get("from") if isinstance(first, Mapping) else None
    return speaker in ("system", "developer")


def shape_for(columns: Mapping[str, Any], row: Row, *, pairs: bool) -> RowShape | None:
    """Return the shape that the mapping makes of rows with these columns; None if there is none."""
    own = {name for name in row if name not in _taken_columns(columns)}
    named = {name for name in columns if name in ROW_NAMES}
    shapes = [shape for shape in shapes_of(pairs=pairs) if set(shape.columns) <= named | own]
    overlaps = [len(named & _main_columns(shape)) for shape in shapes]
    return shapes[overlaps.index(max(overlaps))] if shapes else None


def _taken_columns(columns: Mapping[str, Any]) -> frozenset[str]:
    """Return the paths, and the columns, that the values of a row are read from."""
    paths = {path for name in columns if name in ROW_NAMES for path in paths_of(columns[name])}
    return frozenset(paths | {path.split(".")[0] for path in paths})


def column_of(path: str, names: Sequence[str]) -> str:
    """Return the column in which a path begins."""
    return path if path in names else path.split(".")[0]


def unused_columns(
    names: Sequence[str], columns: Mapping[str, Any], shape: RowShape | None
) -> list[str]:
    """Return the columns of a source that its rows are read without."""
    used = {
        *_taken_columns(columns),
        *_SIDE,
        *ROW_FLAGS,
        *MEDIA_KEYS,
        *_own_columns(columns, shape),
    }
    if shape is not None and not _MAIN & set(columns):
        used = used - _MAIN | _main_columns(shape) | _taken_columns(columns)
    return [name for name in names if name not in used]


def unread_keys(head: Iterable[Row], columns: Mapping[str, Any]) -> list[str]:
    """Return the keys of messages that hold a value and aren't read, such as `messages[].score`."""
    read = {path.split(".")[0] for name in columns for path in paths_of(columns[name])}
    unread: dict[str, None] = {}
    for row in head:
        for name in _TURNS:
            path = next(iter(paths_of(columns[name])), name) if name in columns else name
            for message in _as_list(value_at(row, path)):
                keys = message if isinstance(message, Mapping) else ()
                filled = [key for key in keys if message[key] not in (None, "", [], {})]
                others = [key for key in filled if key not in MESSAGE_KEYS and key not in read]
                unread |= dict.fromkeys(f"{path}[].{key}" for key in others)
    return list(unread)


def check_columns(source: SourceConfig, table: datasets.Dataset) -> None:
    """Check that the paths of a source's `columns` are there.

    Raises:
        DataError: a column that the file doesn't have, or a path that leads nowhere in its first
        rows, or in their messages.
    """
    head = list(islice(table, _LOOKED_AT))
    messages = list(_messages_of(head, source.columns))
    for name, spec in source.columns.items():
        of_messages = name not in ROW_NAMES or _is_of_messages_alone(name, source.columns)
        for path in paths_of(spec):
            if of_messages:
                names = list(dict.fromkeys(key for message in messages for key in message))
                problem = _path_problem(path, names, messages, "messages have")
            else:
                problem = _path_problem(path, table.column_names, head, "the file has")
            if problem:
                raise DataError(f"source {source.path!r}: columns.{name}: {problem}")


def _messages_of(rows: Sequence[Row], columns: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the messages of rows, as the file has them."""
    for row in rows:
        for name in _TURNS:
            value = read_value(name, columns[name], row) if name in columns else row.get(name)
            yield from (item for item in _as_list(value) if isinstance(item, Mapping))


def _path_problem(path: str, names: Sequence[str], head: Sequence[Row], has: str) -> str | None:
    first = path.split(".")[0]
    if path in names:
        return None
    if first not in names:
        near = nearest(path, names)
        near = "" if near.startswith(" (known") else near
        return f"no column {path!r}{near}; {has} {', '.join(names) or 'none'}"
    if any(value_at(row, path) is not None for row in head):
        return None
    above, _, key = path.rpartition(".")
    beside = next((value for row in head if (value := value_at(row, above)) is not None), None)
    keys = list(beside) if isinstance(beside, Mapping) else []
    hint = nearest(key, keys) if keys else f" ({above} is {beside!r:.60})"
    return f"nothing at {path!r} in the first {len(head)} rows{hint}"


def _is_of_messages_alone(name: str, columns: Mapping[str, Any]) -> bool:
    return name == "thinking" and "completion" not in columns


def _is_of_row(name: str, shape: RowShape | None) -> bool:
    """Tell a row's own `thinking` from that of its messages."""
    return name != "thinking" or (shape is not None and name in shape.optional)


def _own_columns(columns: Mapping[str, Any], shape: RowShape | None) -> frozenset[str]:
    """Return the main columns that a row may still have under their own names."""
    named = _MAIN & set(columns)
    if not named:
        return _MAIN
    own = _main_columns(shape) - named
    if shape is not None and shape.is_pair and named - {"chosen", "rejected"}:
        # One prompt alone: another one would come before the mapped one.
        own &= {*shape.columns, "history"}
    return own


def _main_columns(shape: RowShape | None) -> frozenset[str]:
    return frozenset((*shape.columns, *shape.optional)) if shape else frozenset()


def _as_list(value: Any) -> Sequence[Any]:
    """Return a list of messages, also from JSON or of one alone; empty for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return ()
    if isinstance(value, Mapping):
        return [value]
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _with_names(turns: Any, fields: Mapping[str, Any], *, in_turn: bool) -> Any:
    """Return messages with our names; text, and what is no list of messages, as it is.

    `in_turn`: texts are the user's and the assistant's in turn.
    """
    value = _as_list(turns)
    if in_turn and len(value) > 1 and all(isinstance(item, str) for item in value):
        return [
            {"role": role, "content": text}
            for role, text in zip(cycle(_SPEAKERS), value, strict=False)
        ]
    if not value or not fields or not all(isinstance(item, Mapping) for item in value):
        return turns
    if any(name in fields for name in _SPEAKERS):
        return [turn for item in value for turn in _exchange(item, fields)]
    return [_message(item, fields) for item in value]


def _exchange(item: Row, fields: Mapping[str, Any]) -> list[Row]:
    """Return the turns of an object that holds a question and its answer; the rest of it, such as a
    trace, is the answer's.
    """
    values = {name: read_value(name, spec, item) for name, spec in fields.items()}
    taken = {path for spec in fields.values() for path in paths_of(spec)}
    rest = {name: value for name, value in item.items() if name not in taken}
    if "thinking" in values:
        rest["reasoning_content"] = values["thinking"]
    turns = [
        {"role": "system", "content": rest.pop("system", None)},
        {"role": "user", "content": values.get("user")},
        {"role": "assistant", "content": values.get("assistant"), **rest},
    ]
    return [turn for turn in turns if turn["content"] not in (None, "")]


def _message(item: Row, fields: Mapping[str, Any]) -> Row:
    values = {name: read_value(name, spec, item) for name, spec in fields.items()}
    role = values.pop("role", item.get("role", item.get("from")))
    if isinstance(role, str) and role.lower() in ROLES:
        role = role.lower()
    taken = {path for spec in fields.values() for path in paths_of(spec)} | {"role", "from"}
    content = values.pop("content", None)
    # Messages of one list may have their texts under different keys: none is lost.
    own = {"content", "value"}
    taken = taken - own if content in (None, "") else taken | own
    rest = {name: value for name, value in item.items() if name not in taken}
    if "thinking" in values:
        rest = {name: value for name, value in rest.items() if name not in _TRACES}
        rest["reasoning_content"] = values.pop("thinking")
    return {"role": role, "content": content, **rest, **values}
