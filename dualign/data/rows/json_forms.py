"""Rows in a JSON file, in whatever form it holds them, if that form has one reading.

    {...}\\n{...}\\n                objects, one a line or several one after the other
    [{...}, {...}]                a list of them
    [{"role": ...}, ...]          a conversation: a file of it, or one a line
    {"data": [{...}, {...}]}      a list of them under the only key that has one, or under the split's
    {"prompt": [...], ...}        an object of columns

Lines are read one by one, other forms whole.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec

from dualign.data.rows.file_signs import binary_lines, encoding, packing, undecodable
from dualign.data.rows.messages import ROLES
from dualign.data.rows.shapes import shape_of
from dualign.errors import DataError, excerpt

_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "eval")
_LISTS = frozenset(
    [
        "data",
        "rows",
        "examples",
        "instances",
        "samples",
        "items",
        "records",
        "dataset",
        "conversations",
        *_SPLITS,
    ]
)
"""Keys of an object that hold all rows of a file."""
_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


def rows_of_file(file: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON file.

    Raises:
        DataError: it isn't JSON, or its form has no reading or several.
    """
    values = _values(file)
    first = next(values, None)
    if first is None:
        return
    second = next(values, None)
    if second is None:
        items = _unwrapped(first, split, file)
        yield from _as_rows(items, file)
    else:
        yield from _as_rows((value for part in ((first, second), values) for value in part), file)


def rows_of_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the rows of some lines of a JSON file.

    Raises:
        NotRowsError: not every line is a row. The file has another form, or a fault; read as a whole
        it says which.
    """
    for line in lines:
        text = line.removeprefix(_MARK)
        if not text.strip():
            continue
        try:
            value = _DECODER.decode(text.decode("utf-8", "surrogatepass"))
        except (ValueError, _TwoValuesError) as error:
            raise NotRowsError from error
        if isinstance(value, dict):
            yield value
        elif _is_conversation(value):
            yield {"messages": value}
        else:
            raise NotRowsError


class NotRowsError(Exception):
    """Lines of a JSON file aren't a row each."""


def _values(file: Path) -> Iterator[Any]:
    """Yield the JSON values of a file: one a line, or else those of the whole text."""
    count = 0
    for number, line in _lines(file):
        try:
            text = line.decode("utf-8", "surrogatepass") if isinstance(line, bytes) else line
            value = _DECODER.decode(text)
        except UnicodeDecodeError as error:
            raise undecodable(file, number, error) from error
        except _TwoValuesError as error:
            raise DataError(f"{file}, line {number}: {error}") from error
        except ValueError as error:
            yield from _values_of_text(file, skip=count, line=number, error=error)
            return
        if value is None:
            raise DataError(f"{file}, line {number}: null. Expected an object.")
        yield value
        count += 1  # noqa: SIM113 - lines that fail aren't counted


def _lines(file: Path) -> Iterator[tuple[int, str | bytes]]:
    """Yield the lines that aren't blank, with their numbers from 1."""
    is_utf8 = encoding(file) == "utf-8-sig"
    lines: Iterable[str | bytes] = binary_lines(file) if is_utf8 else _text(file).split("\n")
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(_MARK) if isinstance(line, bytes) else line
        if text.strip():
            yield number, text


def _values_of_text(file: Path, *, skip: int, line: int, error: ValueError) -> Iterator[Any]:
    """Yield the values of a file that isn't one value a line, without the first `skip`.

    Raises:
        DataError: the text isn't JSON either; `line` and `error` are where lines stopped being it.
    """
    text = _text(file)
    at, count = _space(text, 0), 0
    values = []
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except _TwoValuesError as twice:
            raise DataError(f"{file}: {twice}") from twice
        except ValueError as whole:
            if not skip and isinstance(whole, json.JSONDecodeError):
                line, error = whole.lineno, whole
            shown = text.split("\n")[line - 1] if text.count("\n") >= line - 1 else ""
            what = getattr(error, "msg", str(error))
            raise DataError(
                f"{file}, line {line}: isn't JSON ({what}): {excerpt(shown)}. Expected one object a "
                "line, or a list of objects."
            ) from whole
        count += 1
        if count > skip:
            values.append(value)
        at = _space(text, at)
    yield from values


def _text(file: Path) -> str:
    form = encoding(file)
    with fsspec.open(str(file), "rb", compression=packing(file)) as stream:
        data: bytes = stream.read()
    try:
        return data.decode(form, "surrogatepass").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise undecodable(file, data[: error.start].count(b"\n") + 1, error) from error


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _no_number(name: str) -> None:
    """NaN, as pandas writes missing values, is null."""


class _TwoValuesError(Exception):
    """An object has one key twice, with different values."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        for key, item in pairs:
            if value[key] != item:
                raise _TwoValuesError(
                    f"an object has the key {key!r} twice, with {excerpt(item)} and "
                    f"{excerpt(value[key])}: expected one of them"
                )
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object)


def _unwrapped(value: Any, split: str, file: Path) -> Iterable[Any]:
    """Return the rows in the only value of a file."""
    if isinstance(value, list):
        return [value] if _is_conversation(value) else value
    if not isinstance(value, Mapping):
        raise DataError(f"{file}: holds {excerpt(value)}. Expected objects.")
    if _is_indexed(value):
        first = next(iter(value.values()))
        return [{name: column[index] for name, column in value.items()} for index in first]
    if _has_columns(value) and not _wraps(value):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    _check_lengths(value, file)
    if any(shape_of(value, pairs=pairs) for pairs in (False, True)) and not _wraps(value):
        return [value]
    lists = {
        key: item for key, item in value.items() if key in (*_LISTS, split) and _are_rows(item)
    }
    if split in lists and set(lists) <= {split, *_SPLITS}:
        return list(lists[split])
    if len(lists) > 1:
        raise DataError(
            f"{file}: an object with rows under {', '.join(lists)}. Expected one list of them: "
            "name it as `split`, or give each a file of its own."
        )
    if lists:
        return list(next(iter(lists.values())))
    objects = list(value.values())
    if len(objects) > 1 and all(isinstance(item, Mapping) for item in objects):
        return objects
    return [value]


def _is_indexed(value: Mapping[str, Any]) -> bool:
    """Return whether an object is a table of pandas: `{column: {"0": value, "1": ...}}`."""
    keys = [list(item) if isinstance(item, Mapping) else [] for item in value.values()]
    return bool(keys) and all(
        names and names == keys[0] and all(name.isdigit() for name in names) for names in keys
    )


def _has_columns(value: Mapping[str, Any]) -> bool:
    """Return whether an object holds columns: lists of one length, and not all of objects."""
    lists = list(value.values())
    if not lists or not all(isinstance(item, list) and item for item in lists):
        return False
    same = len({len(item) for item in lists}) == 1
    return same and not all(isinstance(entry, Mapping) for item in lists for entry in item)


def _check_lengths(value: Mapping[str, Any], file: Path) -> None:
    """Raise DataError for lists of texts under the names of a shape that differ in their lengths."""
    texts = all(
        isinstance(column, list) and column and all(isinstance(text, str) for text in column)
        for column in value.values()
    )
    if not texts or not any(shape_of(value, pairs=pairs) for pairs in (False, True)):
        return
    if len({len(column) for column in value.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column):,}" for name, column in value.items())
        raise DataError(f"{file}: columns of different lengths ({lengths}). Expected one length.")


def _wraps(value: Mapping[str, Any]) -> bool:
    """Return whether the only list of an object holds rows, as in `{"conversations": [{...}]}`."""
    return len(value) == 1 and all(key in _LISTS and _are_rows(item) for key, item in value.items())


def _are_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value or _is_conversation(value):
        return False
    return all(isinstance(item, Mapping) or _is_conversation(item) for item in value)


def _is_conversation(value: Any) -> bool:
    """Return whether a list holds messages, not rows."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, Mapping)
            and "message_id" not in item
            and any(
                isinstance(item.get(key), str) and item[key] in ROLES for key in ("role", "from")
            )
            for item in value
        )
    )


def _as_rows(items: Iterable[Any], file: Path) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(items, 1):
        if isinstance(item, Mapping):
            yield dict(item)
        elif _is_conversation(item):
            yield {"messages": item}
        else:
            raise DataError(
                f"{file}, row {number}: is {excerpt(item)}. Expected an object, or a list of messages."
            )
