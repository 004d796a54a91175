"""Streams: the rows that a table would give, going on from anywhere, with every row counted."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig, StreamConfig
from dualign.data.prepare import prepare_sft
from dualign.data.request import DataRequest
from dualign.data.stream.opening import open_stream
from dualign.data.stream.reader import Share
from dualign.data.stream.stream import StreamData
from dualign.data.text.template import load_template

Row = dict[str, Any]


def rows(name: str, count: int, mode: str = "no_think") -> list[Row]:
    """Rows whose lengths differ."""
    trace = {"reasoning_content": "So it is."} if mode == "think" else {}
    return [
        {
            "mode": mode,
            "messages": [
                {"role": "user", "content": f"{name} number {n}?"},
                {"role": "assistant", "content": "yes " * (1 + n % 7) + str(n), **trace},
            ],
        }
        for n in range(count)
    ]


def write(folder: Path, files: dict[str, list[Row]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        if name.endswith(".gz"):
            (folder / name).write_bytes(gzip.compress(text.encode()))
        elif name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(content), folder / name)
        else:
            (folder / name).write_text(text)
    return folder


@pytest.fixture
def opened(tokenizer: PreTrainedTokenizerFast) -> Callable[..., StreamData]:
    def open_it(
        *sources: SourceConfig | Path, share: Share | None = None, buffer: int = 32, **keys: Any
    ) -> StreamData:
        return open_stream(request(tokenizer, *sources, buffer=buffer, **keys), share or Share())

    return open_it


def request(
    tokenizer: PreTrainedTokenizerFast, *sources: SourceConfig | Path, buffer: int = 32, **keys: Any
) -> DataRequest:
    configs = tuple(
        source if isinstance(source, SourceConfig) else SourceConfig(path=str(source))
        for source in sources
    )
    streaming = StreamConfig(shuffle_buffer=buffer) if buffer else None
    data = DataConfig(
        sources=configs, streaming=streaming, cache=False, **{"max_tokens": 128, **keys}
    )
    return DataRequest(data, tokenizer, load_template("dualign"), seed=3)


def documents(packed: list[dict[str, list[int]]]) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            found[tuple(row["input_ids"][start : start + length])] += 1
            start += length
    return found


def first(data: StreamData, count: int) -> list[dict[str, list[int]]]:
    return list(islice(data.train, count))


def pass_of(data: StreamData) -> list[dict[str, list[int]]]:
    """The packed rows of the first block."""
    return list(data.train.first_block())


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.json.gz", "rows.parquet"])
@pytest.mark.parametrize("files", [1, 3])
def test_a_pass_holds_the_rows_of_a_table(
    kind: str,
    files: int,
    opened: Callable[..., StreamData],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    content = {f"{n}{kind}": rows(f"f{n}", 60 // files) for n in range(files)}
    folder = write(tmp_path / "rows", content)
    table = prepare_sft(request(tokenizer, folder, buffer=0))
    stream = opened(folder, buffer=60)
    assert documents(pass_of(stream)) == documents(list(table.train))
    streamed, prepared = stream.rows, dict(table.rows)
    for ignored in ("removed", "tasks"):
        prepared.pop(ignored)
    assert streamed == prepared
    again = opened(folder, buffer=60)
    assert first(again, 20) == first(stream, 20)


def test_a_stream_goes_on_from_any_packed_row(
    opened: Callable[..., StreamData], tmp_path: Path
) -> None:
    think = write(tmp_path / "a", {f"{n}.jsonl": rows(f"a{n}", 17, "think") for n in range(3)})
    mixed = rows("b", 40) + rows("b think", 9, "think")
    other = write(tmp_path / "b", {"rows.jsonl": mixed})
    sources = (
        SourceConfig(path=str(think), share=0.4, label="a"),
        SourceConfig(path=str(other), label="b"),
    )
    keys = {"mix": {"think": 0.5, "no_think": 0.5}, "buffer": 10, "validation_rows": 2}
    calm = opened(*sources, **keys)
    packed = first(calm, 40)
    for place in range(0, 40, 3):
        fresh = opened(*sources, **keys)
        before = first(fresh, place)
        state = json.loads(json.dumps(fresh.train.state(place)))
        resumed = opened(*sources, **keys)
        assert resumed.rows["kept"], "a block is there before the place is known"
        resumed.train.go_to(state)
        assert before + first(resumed, 40 - place) == packed
        assert calm.train.account(40) == resumed.train.account(40)
