"""The columns of JSON and CSV files, told by all of their rows.

`datasets` tells them by the first ten megabytes: a key that comes up later (the first trace, the first tool
call) stops it, and a CSV answer of 42 becomes a number, one of NA nothing.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec

_BLANK = b" \t\r\n"


def json_features(files: Sequence[Path]) -> datasets.Features | None:
    """A column for each key that any row has; lists, objects and values of several kinds are kept as they are.
    None where a file isn't rows of objects: then `datasets` says what is wrong with it.
    """
    kinds: dict[str, set[type]] = {}
    try:
        for row in _rows(files):
            for key, value in row.items():
                kinds.setdefault(key, set()).add(type(value))
    except (AttributeError, UnicodeDecodeError, ValueError):
        return None
    return datasets.Features({key: _feature(found) for key, found in kinds.items()}) or None


def csv_options(files: Sequence[Path]) -> dict[str, Any]:
    """What makes every column text, and nothing but an empty field a missing value."""
    sep = "\t" if all(".tsv" in file.suffixes for file in files) else ","
    with fsspec.open(str(files[0]), "rt", compression="infer", encoding="utf-8-sig") as lines:
        header = next(csv.reader(lines, delimiter=sep), [])
    options: dict[str, Any] = {"sep": sep, "keep_default_na": False, "na_values": [""]}
    if header and len(set(header)) == len(header):
        text = datasets.Value("string")
        options["features"] = datasets.Features(dict.fromkeys(header, text))
    return options


def _rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with fsspec.open(str(file), "rb", compression="infer") as lines:
            head = next((line for line in lines if line.strip(_BLANK)), b"")
            if head.lstrip(b"\xef\xbb\xbf" + _BLANK).startswith(b"["):
                yield from json.loads(head + lines.read())
                continue
            if head:
                yield json.loads(head.decode("utf-8-sig"))
            yield from (json.loads(line) for line in lines if line.strip(_BLANK))


def _feature(kinds: set[type]) -> Any:
    told = kinds - {type(None)}
    if told <= {str}:
        return datasets.Value("string")
    if told == {bool}:
        return datasets.Value("bool")
    if told == {int}:
        return datasets.Value("int64")
    return datasets.Value("float64") if told <= {int, float} else datasets.Json()
