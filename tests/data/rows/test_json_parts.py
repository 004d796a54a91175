"""JSON read in parts by several processes is what one process reads."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualign.data.rows.json_parts import _lines, write_parts
from dualign.data.shards import joined
from dualign.errors import DataError

PADDING = "x" * 5_000
ROWS = [{"prompt": f"{number} {PADDING}", "n": number} for number in range(500)]
"""2.5 MB: three parts for two processes."""


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(files: list[Path], processes: int, folder: Path) -> tuple[Any, list[dict[str, Any]], int]:
    """(columns, rows, Arrow files)."""
    folder.mkdir()
    write_parts(files, "train", folder, processes=processes)
    paths = sorted(folder.iterdir())
    table = joined(paths)
    return table.features, table.to_list(), len(paths)


FORMS: dict[str, tuple[bytes, int]] = {
    "objects": (lines(ROWS), 3),
    "crlf and blank lines": (lines(ROWS).replace(b"\n", b"\r\n\n"), 3),
    "byte-order mark": (b"\xef\xbb\xbf" + lines(ROWS), 3),
    "a key that comes late": (lines([*ROWS, {"late": [1, {"a": None}]}, {"n": None}]), 3),
    "a kind that comes late": (lines([*ROWS, {"n": 0.5}]), 3),
    "two kinds": (lines([*ROWS, {"n": "one"}]), 3),
    "a long line": (lines([*ROWS[:100], {"prompt": PADDING * 400, "n": 1}, *ROWS[:100]]), 3),
    "no end of the last line": (lines(ROWS).rstrip(), 3),
    "conversations": (lines([[{"role": "user", "content": PADDING}]] * 400), 2),
    "a list on one line": (json.dumps(ROWS).encode(), 1),
    "a list on many lines": (json.dumps(ROWS, indent=1).encode(), 1),
    "an object of columns": (json.dumps({"a": [PADDING] * 500, "b": [1] * 500}).encode(), 1),
    "one row": (json.dumps({"prompt": PADDING * 500}).encode(), 1),
    "utf-16": (lines(ROWS).decode().encode("utf-16"), 1),
    "packed": (gzip.compress(lines(ROWS)), 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_read_what_one_reads(tmp_path: Path, form: str) -> None:
    content, parts = FORMS[form]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    features, rows, _ = read([path], 1, tmp_path / "one")
    again, same, count = read([path], 2, tmp_path / "two")
    assert (again, list(again), same) == (features, list(features), rows)
    assert count == parts and rows


def test_a_part_within_a_line_reads_no_more_than_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b" " * (4 << 20) + b"]")
    size = 1 << 16
    tracemalloc.start()
    parts = [list(_lines(path, range(at, at + size))) for at in range(size, 4 << 20, size)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not any(parts)
    assert peak < 1 << 20


@pytest.mark.parametrize("size", range(1, 9))
def test_every_line_is_of_one_part(tmp_path: Path, size: int) -> None:
    content = b"a\n\nbcdefghij\nk\r\nlm"
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    starts = range(0, len(content), size)
    parts = [_lines(path, range(at, at + size)) for at in starts]
    assert [line for part in parts for line in part] == content.splitlines(keepends=True)


def test_files_of_several_forms_keep_their_order(tmp_path: Path) -> None:
    more = lines([{"n": 7, "more": "y"}])
    contents = [b"[]\n", lines(ROWS), json.dumps(ROWS).encode(), more, b"[]\n"]
    paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    features, rows, _ = read(paths, 1, tmp_path / "one")
    assert len(rows) == 1001 and list(features) == ["prompt", "n", "more"]
    assert read(paths, 2, tmp_path / "two")[:2] == (features, rows)


BROKEN: dict[str, Callable[[], bytes]] = {
    r"a\.jsonl, line 501: isn't JSON": lambda: lines(ROWS) + b'{"prompt": \n',
    r"a\.jsonl, line 501: null": lambda: lines([*ROWS, None]),
    r"a\.jsonl, line 501: an object has the key 'a' twice": lambda: (
        lines(ROWS) + b'{"a": 1, "a": 2}\n'
    ),
    r"a\.jsonl, line 501: isn't UTF-8": lambda: lines(ROWS) + b'{"a": "\xe9"}\n',
    r"a\.jsonl, row 501: is 3": lambda: lines([*ROWS, 3]),
    "column 'n': a number out of range": lambda: lines([*ROWS, {"n": [2**70]}]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_line_of_the_last_part_is_named_as_ever(tmp_path: Path, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(BROKEN[message]())
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        with pytest.raises(DataError, match=message):
            write_parts([path], "train", folder, processes=processes)
