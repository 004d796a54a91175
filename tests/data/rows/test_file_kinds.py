"""Files that aren't what their name says: read where one reading is possible, else refused by what they are.

One table: a file as people have it, and what comes of it.
"""

import bz2
import gzip
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import datasets
import pytest

from dualign.cli.main import main
from dualign.data.config import SourceConfig
from dualign.data.faults import RowError
from dualign.data.rows.loading import load_source, sample_rows
from dualign.data.rows.parser import RowParser
from dualign.data.rows.text_rules import NO_RULES
from dualign.errors import DataError

ROW = {"prompt": "Héllo 你好", "completion": "Yo"}
CHAT = [{"role": "user", "content": "Héllo"}, {"role": "assistant", "content": "Yo"}]
LINE = json.dumps(ROW, ensure_ascii=False)
LINES = f"{LINE}\n{LINE}\n"
TALK = json.dumps(CHAT, ensure_ascii=False)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214\nsize 12345\n"


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("rows.jsonl", LINES)
    return stream.getvalue()


def parquet() -> bytes:
    stream = io.BytesIO()
    datasets.Dataset.from_list([ROW]).to_parquet(stream)
    return stream.getvalue()


READ: Mapping[str, tuple[str, str | bytes, int]] = {
    "JSON lines": ("a.jsonl", LINES, 2),
    "no newline at the end": ("a.jsonl", LINES.rstrip(), 2),
    "CRLF": ("a.jsonl", LINES.replace("\n", "\r\n"), 2),
    "CR alone": ("a.jsonl", LINES.replace("\n", "\r"), 2),
    "blank lines": ("a.jsonl", f"\n\n{LINE}\n  \n\n{LINE}\n\n", 2),
    "byte-order mark": ("a.jsonl", "\ufeff" + LINES, 2),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), 2),
    "UTF-16, big end first": ("a.json", b"\xfe\xff" + LINES.encode("utf-16-be"), 2),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le"), 2),
    "a key twice with one value": ("a.jsonl", LINE[:-1] + ', "completion": "Yo"}', 1),
    "a list": ("a.json", f"[{LINE}, {LINE}]", 2),
    "a list with a mark": ("a.json", f"\ufeff[{LINE}]", 1),
    "a list of one line under .jsonl": ("a.jsonl", f"[{LINE}, {LINE}]\n", 2),
    "a list of many lines": ("a.json", json.dumps([ROW, ROW], indent=2), 2),
    "an object of many lines": ("a.json", json.dumps(ROW, indent=2), 1),
    "objects of many lines": ("a.jsonl", 2 * (json.dumps(ROW, indent=2) + "\n"), 2),
    "objects one after the other": ("a.json", LINE + LINE, 2),
    "objects and spaces": ("a.json", LINE + " \t" + LINE + "\n\n" + LINE, 3),
    "lines, then an object of many": ("a.jsonl", LINES + json.dumps(ROW, indent=1), 3),
    "rows under data": ("a.json", json.dumps({"version": "1", "data": [ROW, ROW]}), 2),
    "rows under train": ("a.json", json.dumps({"train": [ROW], "test": [ROW, ROW]}), 1),
    "conversations under conversations": (
        "a.json",
        json.dumps({"conversations": [{"conversations": CHAT}, {"conversations": CHAT}]}),
        2,
    ),
    "lists of messages under data": ("a.json", json.dumps({"data": [CHAT, CHAT]}, indent=1), 2),
    "columns": ("a.json", json.dumps({"prompt": ["a", "b"], "completion": ["c", "d"]}), 2),
    "columns of pandas": (
        "a.json",
        json.dumps({"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}),
        2,
    ),
    "objects by id": ("a.json", json.dumps({"q1": ROW, "q2": ROW}), 2),
    "a list of messages a line": ("a.jsonl", f"{TALK}\n{TALK}\n", 2),
    "one list of messages": ("a.json", TALK, 1),
    "a list of lists of messages": ("a.json", f"[{TALK}, {TALK}]", 2),
    "a conversation": ("a.json", json.dumps({"messages": CHAT}, indent=1), 1),
    "gzip without its name": ("a.jsonl", gzip.compress(LINES.encode()), 2),
    "gzip of UTF-16": ("a.jsonl.gz", gzip.compress(LINES.encode("utf-16")), 2),
    "bzip2 without its name": ("a.json", bz2.compress(LINES.encode()), 2),
    "plain under .gz": ("a.jsonl.gz", LINES, 2),
    "NaN, as pandas writes it": ("a.jsonl", '{"prompt": "a", "completion": "b", "system": NaN}', 1),
    "CSV with a mark": ("a.csv", "\ufeffprompt,completion\na,b\n", 1),
    "CSV in UTF-16": ("a.csv", "prompt,completion\né,b\n".encode("utf-16"), 1),
    "CSV with CRLF and blank lines": ("a.csv", "prompt,completion\r\n\r\na,b\r\n\r\n", 1),
    "Parquet": ("a.parquet", parquet(), 1),
}
REFUSED: Mapping[str, tuple[str, str | bytes, str]] = {
    "a Git LFS pointer": ("a.jsonl", POINTER, "a Git LFS pointer.*git lfs pull"),
    "a Git LFS pointer for Parquet": ("a.parquet", POINTER, "a Git LFS pointer"),
    "a Git LFS pointer for CSV": ("a.csv", POINTER, "a Git LFS pointer"),
    "0 bytes": ("a.jsonl", "", r"a\.jsonl: holds no rows: it is empty \(0 bytes\)"),
    "0 bytes of Parquet": ("a.parquet", "", "is empty"),
    "0 bytes of CSV": ("a.csv", "", "is empty"),
    "blank lines alone": ("a.jsonl", "\n \n", "is empty"),
    "an empty list": ("a.json", "[]", "holds no rows"),
    "an empty object": ("a.json", "{}", "holds no rows"),
    "a zip": ("a.jsonl", zipped(), "a zip archive. Unpack it"),
    "Parquet under .json": ("a.json", parquet(), "a Parquet file"),
    "JSON under .parquet": ("a.parquet", LINES, "isn't a Parquet file"),
    "a web page": ("a.json", "<!DOCTYPE html><html></html>", "a web page"),
    "Latin-1": (
        "a.jsonl",
        (LINE + "\n" + LINE).replace("你好", "").encode("latin-1"),
        "line 1: isn't UTF-8",
    ),
    "Latin-1 later": ("a.jsonl", f'{LINES}{{"prompt": "é"}}\n'.encode()[:-5] + b'\xe9"}', "line 3"),
    "Latin-1 as CSV": (
        "a.csv",
        "prompt,completion\na,b\né,c\n".encode("latin-1"),
        "line 3: isn't UTF-8",
    ),
    "a broken line": ("a.jsonl", f"{LINES}{LINE[:-4]}\n{LINES}", r"a\.jsonl, line 3: isn't JSON"),
    "a broken list": ("a.json", f"[{LINE},\n{LINE}", "line 2: isn't JSON"),
    "a key twice": (
        "a.jsonl",
        LINES + '{"prompt": "a", "prompt": "b"}\n',
        r"line 3: an object has the key 'prompt' twice, with 'a' and 'b'",
    ),
    "a key twice in an object of many lines": ("a.json", '{"a": 1,\n"a": 2}', "a.json: .* twice"),
    "columns of different lengths": (
        "a.json",
        '{"prompt": ["a", "b"], "completion": ["c"]}',
        r"columns of different lengths \(prompt 2, completion 1\)",
    ),
    "a number": ("a.json", "42", "holds 42. Expected objects"),
    "a list of texts": ("a.json", '["a", "b"]', "row 1: is 'a'. Expected an object"),
    "texts, one a line": ("a.jsonl", '"a"\n"b"\n', "row 1: is 'a'"),
    "splits without the one asked for": (
        "a.json",
        json.dumps({"dev": [ROW], "test": [ROW]}),
        "rows under dev, test. Expected one list",
    ),
    "a split beside other rows": (
        "a.json",
        json.dumps({"train": [ROW], "data": [ROW]}),
        "rows under train, data. Expected one list",
    ),
    "text": ("a.json", "Once upon a time.", "line 1: isn't JSON"),
    "YAML": ("a.json", "- prompt: a\n  completion: b\n", "line 1: isn't JSON"),
    "a number out of range": ("a.jsonl", '{"a": {"b": 1e999}}', "out of range"),
    "a quote that CSV doesn't close": ("a.csv", 'prompt,completion\na,"b\n', "EOF inside string"),
    "CSV of ragged lines": (
        "a.csv",
        "prompt,completion\na,b\nc,d,e\n",
        "Expected 2 fields in line 3",
    ),
    "half a character as a key": ("a.jsonl", '{"a\\ud800": 1}', "surrogates not allowed"),
    "broken gzip": ("a.jsonl.gz", gzip.compress(LINES.encode() * 50)[:60], "can't be"),
}


def written(folder: Path, name: str, content: str | bytes) -> SourceConfig:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return SourceConfig(path=str(folder / name))


@pytest.mark.parametrize("kind", READ)
def test_a_file_with_one_reading_is_read(kind: str, tmp_path: Path) -> None:
    name, content, count = READ[kind]
    source = written(tmp_path, name, content)
    sampled = sample_rows(source, seed=1, number=0, base=None)
    assert len(sampled.table) == count
    parser = RowParser(
        source=source,
        supervise="assistant",
        row_type="conversation",
        rules=NO_RULES,
        structs=sampled.structs,
    )
    for row in sampled.stored:
        assert [turn.role for turn in parser(row, 0).messages] == ["user", "assistant"]  # type: ignore[union-attr]
    if name.endswith(("json", "jsonl", "gz")):
        streamed = SourceConfig(path=source.path, streaming=True)
        assert load_source(streamed)[:] == load_source(source)[:]


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_without_one_is_refused_by_what_it_is(kind: str, tmp_path: Path) -> None:
    name, content, reason = REFUSED[kind]
    source = written(tmp_path, name, content)
    for streaming in (False, True):
        with pytest.raises(DataError, match=reason) as error:
            load_source(SourceConfig(path=source.path, streaming=streaming))
        assert name in str(error.value)
        with pytest.raises(DataError, match=reason):
            settings = SourceConfig(path=source.path, streaming=streaming, rows=1)
            sample_rows(settings, seed=1, number=0, base=None)


def test_doctor_says_that_a_file_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", written(tmp_path, "a.jsonl", "").path]) == 1
    assert "is empty" in " ".join(capsys.readouterr().out.split())


def test_an_empty_file_beside_others_is_nothing(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", LINES)
    written(tmp_path, "b.jsonl", "")
    assert len(load_source(SourceConfig(path=str(tmp_path)))) == 2


def test_a_part_of_a_split(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", LINES * 5).path
    for split, count in (("train[:3]", 3), ("train[50%:]", 5), ("train[:2]+train[8:]", 4)):
        assert len(load_source(SourceConfig(path=path, split=split))) == count
    with pytest.raises(DataError, match="can't be read"):
        load_source(SourceConfig(path=path, split="train[a:]"))


def test_numbers_in_calls_are_those_of_the_file(tmp_path: Path) -> None:
    numbers = [0.1234567890123456, 1e-12, 3.14159265358979, 2**62, 1e22, -0.0]
    call = {"name": "f", "arguments": {"x": numbers}}
    row = {"messages": [CHAT[0], {"role": "assistant", "tool_calls": [call]}]}
    source = written(tmp_path, "a.jsonl", json.dumps(row))
    for streaming in (False, True):
        settings = SourceConfig(
            path=source.path, streaming=streaming, rows=1 if streaming else None
        )
        sampled = sample_rows(settings, seed=1, number=0, base=None)
        parser = RowParser(
            source=source,
            supervise="assistant",
            row_type="conversation",
            rules=NO_RULES,
            structs=sampled.structs,
        )
        parsed = parser(sampled.stored[0], 0)
        assert repr(parsed.messages[1].functions[0]["arguments"]["x"]) == repr(numbers)  # type: ignore[union-attr]


def test_a_file_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    source = written(tmp_path, "a.jsonl", LINES)
    assert len(load_source(source)) == 2
    written(tmp_path, "a.jsonl", LINES * 2)
    assert len(load_source(source)) == 4


HALF = "cut \\ud83d off"


@pytest.mark.parametrize(
    "row",
    [
        f'{{"prompt": "{HALF}", "completion": "b"}}',
        f'{{"prompt": "a", "completion": "{HALF}"}}',
        f'{{"messages": [{{"role": "user", "content": "{HALF}"}}, {{"role": "assistant", "content": "b"}}]}}',
        f'{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "b", '
        f'"thinking": "{HALF}"}}]}}',
        f'{{"conversations": [{{"from": "human", "value": "{HALF}"}}, {{"from": "gpt", "value": "b"}}]}}',
        f'{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "", '
        f'"tool_calls": [{{"name": "f", "arguments": {{"x": "{HALF}"}}}}]}}]}}',
    ],
)
def test_half_a_character_is_refused_by_its_code_wherever_it_is(row: str, tmp_path: Path) -> None:
    whole = row.replace("\\ud83d", "\\ud83d\\ude00")
    source = written(tmp_path, "a.jsonl", f"{whole}\n{row}\n")
    sampled = sample_rows(source, seed=1, number=0, base=None)
    parser = RowParser(
        source=source,
        supervise="assistant",
        row_type="conversation",
        rules=NO_RULES,
        structs=sampled.structs,
    )
    parser(sampled.stored[0], 0)
    with pytest.raises(RowError, match=r"the \? in '.*\? off") as error:
        parser(sampled.stored[1], 1)
    assert error.value.code == "lone_surrogate"
