"""The first rows of a file that another tool's file names, where it is here."""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

_BYTES = 1_000_000
"""of a file, that are read"""
_ROWS = 200


def first_rows(file: Path | None) -> tuple[Mapping[str, Any], ...]:
    """Return the first rows of a local .json, .jsonl, .csv or .tsv file; () of anything else."""
    if file is None or not file.is_file():
        return ()
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        if file.suffix in (".csv", ".tsv"):
            delimiter = "\t" if file.suffix == ".tsv" else ","
            return tuple(islice(_of_table(stream, delimiter), _ROWS))
        if file.suffix not in (".json", ".jsonl"):
            return ()
        head = stream.read(_BYTES)
    return tuple(islice(_objects(head), _ROWS))


def _of_table(stream: TextIO, delimiter: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table, up to one that Python's reader refuses: a cell of over 131,072 characters."""
    with suppress(csv.Error):
        for row in csv.DictReader(stream, delimiter=delimiter):
            yield {name: cell for name, cell in row.items() if name is not None}


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a list or of lines, up to one that is cut off."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            row, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            return
        yield row
        start = text.find("{", end)
