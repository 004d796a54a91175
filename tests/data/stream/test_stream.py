"""Streams: the rows that a table would give, going on from anywhere, with every row counted."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from dualign.config import Document, parse
from dualign.data.config import DataConfig, DecontaminateConfig, SourceConfig, StreamConfig
from dualign.data.prepare import prepare_sft
from dualign.data.request import DataRequest
from dualign.data.seeds import rng
from dualign.data.stream import maker
from dualign.data.stream.blocks import pack_rows
from dualign.data.stream.opening import open_stream
from dualign.data.stream.reader import Rank
from dualign.data.stream.rows import StreamRow
from dualign.data.stream.stream import StreamData
from dualign.data.text.template import load_template
from dualign.errors import DataError
from dualign.preference.config import PreferenceStage
from dualign.sft.config import SFTStage

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
        *sources: SourceConfig | Path, rank: Rank | None = None, buffer: int = 32, **keys: Any
    ) -> StreamData:
        return open_stream(request(tokenizer, *sources, buffer=buffer, **keys), rank or Rank())

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


def test_problems_of_the_evaluation_are_left_out_as_of_a_table(
    opened: Callable[..., StreamData], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Held-out rows hold none either, and a later pass counts none again."""
    content = rows("farm", 40) + rows("think", 8, "think")
    for row in (content[0], content[30], content[-1]):
        row["messages"][0]["content"] = "Say: how many eggs do 7 hens lay?"
    folder = write(tmp_path / "rows", {"rows.jsonl": content})
    (tmp_path / "asked.jsonl").write_text('{"q": "How many eggs do 7 hens lay", "answer": "1"}')
    task = {"name": "eggs", "rows": "asked.jsonl", "prompt": "{q}", "verifier": "integer"}
    (tmp_path / "eggs.yaml").write_text(json.dumps(task))
    clean = DecontaminateConfig(tasks=(str(tmp_path / "eggs.yaml"),), ngram=5)
    table = prepare_sft(request(tokenizer, folder, buffer=0, decontaminate=clean))
    stream = opened(folder, buffer=45, decontaminate=clean)
    assert documents(pass_of(stream)) == documents(list(table.train))
    assert stream.rows["by"] == table.rows["by"]
    assert stream.rows["dropped"] == {"contaminated": 3} and stream.rows["kept"] == 45
    held_out = opened(folder, buffer=90, decontaminate=clean, validation_rows=2)
    first(held_out, 60)
    assert held_out.rows["dropped"] == {"contaminated": 3} and held_out.rows["validation"] == 2


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


@pytest.mark.parametrize("files", [2, 3])
def test_two_processes_read_each_row_once(
    files: int, opened: Callable[..., StreamData], tmp_path: Path
) -> None:
    content = {f"{n}.jsonl": rows(f"f{n}", 60 // files) for n in range(files)}
    folder = write(tmp_path / "rows", content)
    whole = opened(folder, buffer=57, validation_rows=3)
    parts = [
        opened(folder, rank=Rank(index=n, count=2), buffer=1, validation_rows=3) for n in range(2)
    ]
    # A source that begins again says how many rows a process has.
    packed, account = [], None
    for part in parts:
        count = next(
            n for n in range(1, 60) if any(s.repeats for s in part.train.account(n).groups.values())
        )
        packed += first(part, count - 1)
        account = account or part.train.account(0)
        account.add(part.train.account(count - 1))
    assert documents(packed) == documents(pass_of(whole))
    assert documents(list(parts[0].validation)) == documents(list(whole.validation))


def test_tokens_keep_to_the_shares_of_sources_and_modes(
    opened: Callable[..., StreamData], tmp_path: Path
) -> None:
    mostly = rows("a", 360) + rows("a think", 40, "think")
    sources = (
        SourceConfig(path=str(write(tmp_path / "a", {"r.jsonl": mostly[::-1]})), label="a"),
        SourceConfig(
            path=str(write(tmp_path / "b", {"r.jsonl": rows("b", 90, "think")})),
            label="b",
            share=0.4,
        ),
    )
    data = opened(*sources, mix={"think": 0.5, "no_think": 0.5}, buffer=150)
    *_, block = [data.train.maker.make() for _ in range(3)]
    account = block.account_at(len(block))
    counted = data.summary(account)
    by_mode, by_source = Counter[str](), Counter[str]()
    for entry in counted["by"]:
        by_mode[entry["mode"]] += entry["tokens"]
        by_source[entry["source"]] += entry["tokens"]
    assert by_mode["think"] / counted["tokens"] == pytest.approx(0.5, abs=0.02)
    assert by_source["b"] / counted["tokens"] == pytest.approx(0.4, abs=0.02)
    assert counted["repeats"] > 0, "b began again"
    assert counted["in"] == counted["kept"] + sum(counted["dropped"].values())
    assert {source["rows"] for source in data.sources(account)} == {400, 90}


def test_a_mode_that_comes_late_is_drawn_from_then_on(
    opened: Callable[..., StreamData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "_PATIENCE", 100)
    late = rows("a", 300) + rows("a think", 200, "think")
    sources = (
        SourceConfig(path=str(write(tmp_path / "a", {"r.jsonl": late})), label="a"),
        SourceConfig(
            path=str(write(tmp_path / "b", {"r.jsonl": rows("b", 90, "think")})),
            label="b",
            share=0.1,
        ),
    )
    data = opened(*sources, mix={"think": 0.5, "no_think": 0.5}, buffer=400)
    drawn = {(row.source, row.mode) for row in data.train.first_block().rows}
    assert (0, "think") in drawn


def test_a_mode_that_no_row_has_ends_the_stream(
    opened: Callable[..., StreamData], tmp_path: Path
) -> None:
    folder = write(tmp_path / "a", {"r.jsonl": rows("a", 20)})
    data = opened(folder, mix={"think": 0.5, "no_think": 0.5})
    with pytest.raises(DataError, match=r"think is to have 0\.5 .* no row that is kept is think"):
        first(data, 1)
    said = SourceConfig(path=str(folder), mode="no_think")
    with pytest.raises(
        DataError, match=r"think is to have 0\.5 of the tokens, and by their sources"
    ):
        opened(said, mix={"think": 0.5, "no_think": 0.5})


def test_faults_are_counted_or_end_the_stream_where_they_are(
    opened: Callable[..., StreamData], tmp_path: Path
) -> None:
    good = rows("a", 12)
    bad = {"mode": "think", "messages": good[0]["messages"]}
    long = {"prompt": "x " * 400, "completion": "y"}
    files = {"0.jsonl": [*good[:6], bad], "1.jsonl": [*good[6:], bad, {"messages": []}]}
    folder = write(tmp_path / "a", files)
    other = write(tmp_path / "b", {"r.jsonl": [{"prompt": "a", "completion": "b"}] * 5 + [long]})
    sources = (SourceConfig(path=str(folder), share=0.5), SourceConfig(path=str(other)))
    data = opened(*sources, conflicts="drop", buffer=60)
    counted = data.rows
    assert counted["dropped"] == {"empty_row": 1, "think_without_trace": 2, "too_long": 1}
    assert counted["in"] == counted["kept"] + 4 == 12 + 3 + 6
    stopping = opened(SourceConfig(path=str(folder), label="chats"), buffer=60)
    with pytest.raises(DataError, match=r"chats, [01].jsonl, row 6: .*\[think_without_trace\]"):
        first(stopping, 9)


def test_held_out_rows_are_the_first_of_each_source(
    opened: Callable[..., StreamData], tmp_path: Path
) -> None:
    empty = {"messages": []}
    folder = write(tmp_path / "a", {"r.jsonl": [empty, *rows("a", 10)]})
    test = write(tmp_path / "t", {"r.jsonl": rows("t", 4)})
    held = SourceConfig(path=str(test), validation=True, label="t")
    data = opened(folder, held, validation_rows=3, conflicts="drop", buffer=7)
    assert data.validation is not None
    train, validation = documents(pass_of(data)), documents(list(data.validation))
    assert (sum(train.values()), sum(validation.values())) == (7, 3 + 4)
    assert not train & validation
    counted = data.rows
    assert (counted["validation"], counted["examples"], counted["in"]) == (7, 7, 15)
    with pytest.raises(DataError, match="validation_rows is 11, but only 10 rows"):
        opened(folder, held, validation_rows=11, conflicts="drop")


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("data.dedup", {"dedup": {"method": "exact"}}),
        ("data.validation_rows", {"validation_rows": 0.5}),
        ("data.num_proc", {"num_proc": 2}),
        ("data.sources[0].rows", {"sources": [{"path": "a", "rows": 3}]}),
        ("data.sources[0].tokens", {"sources": [{"path": "a", "tokens": 3}]}),
        ("data.sources[0].weight", {"sources": [{"path": "a", "weight": 2.0}]}),
        ("data.sources[0].split", {"sources": [{"path": "a", "split": "train[:9]"}]}),
        ("data.sources", {"sources": [{"path": "a"}, {"path": "b"}]}),
        ("data.streaming.shuffle_buffer", {"streaming": {"shuffle_buffer": 0}}),
        ("train.max_steps", {"train": {}}),
        ("train.num_train_epochs", {"train": {"max_steps": 1, "num_train_epochs": 1.0}}),
        ("train.dataloader_num_workers", {"train": {"max_steps": 1, "dataloader_num_workers": 2}}),
        ("train.auto_find_batch_size", {"train": {"max_steps": 1, "auto_find_batch_size": True}}),
    ],
)
def test_what_needs_all_rows_or_their_number_is_refused(key: str, keys: dict[str, Any]) -> None:
    train = keys.pop("train", {"max_steps": 5})
    data = {"sources": [{"path": "a"}], "streaming": True, **keys}
    entry = {"name": "s", "model": "m", "data": data, "train": train}
    document = Document(file="r.yaml")
    parse(SFTStage, entry, document)
    assert len(document.problems) == 1 and f": {key}: " in document.problems[0], document.problems


def row_of(tokens: int) -> StreamRow:
    ids = np.broadcast_to(np.int32(5), tokens)
    facts = {"source": 0, "mode": "plain", "setting": 0, "repairs": "", "place": "a, row 0"}
    parts = np.array([tokens], dtype=np.int32)
    return StreamRow(
        **facts, supervised=tokens, repeats=False, input_ids=ids, labels=ids, parts=parts
    )


def test_a_long_document_is_wrapped_in_memory_of_its_size() -> None:
    data = DataConfig(sources=(SourceConfig(path="a"),), max_tokens=32, packing="wrapped")
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        table, first_packed = pack_rows([row_of(20_000)] * 2, [1, 2], data, rng(3, "rows"))
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 20_000_000
    assert first_packed.tolist() == [0, 625]
    rows = table.to_pylist()
    assert [len(row["input_ids"]) for row in rows] == [32] * 1250
    assert rows[0]["labels"] == [-100] + [5] * 31 and rows[625]["doc_groups"] == [2]


def test_a_block_that_arrow_cannot_count_is_refused() -> None:
    data = DataConfig(sources=(SourceConfig(path="a"),), max_tokens=32, packing="wrapped")
    with pytest.raises(DataError, match=r"2,147,483,648 tokens, .* lower data\.streaming\.shuffle"):
        pack_rows([row_of(2**30)] * 2, [1, 1], data, rng(3, "rows"))


def test_a_preference_stage_takes_no_stream() -> None:
    document = Document(file="r.yaml")
    data = {"sources": [{"path": "a"}], "streaming": True, "packing": "none"}
    parse(PreferenceStage, {"name": "p", "model": "m", "data": data}, document)
    assert (
        len(document.problems) == 1 and "data.streaming: is for sft stages" in document.problems[0]
    )


def test_what_only_looks_at_a_stream_gets_its_first_rows_as_a_table(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    short = SourceConfig(path=str(write(tmp_path / "a", {"r.jsonl": rows("a", 20)})), share=0.9)
    long = SourceConfig(path=str(write(tmp_path / "b", {"r.jsonl": rows("b", 2100)})))
    keys = {"mix": {"think": 0.5, "no_think": 0.5}, "validation_rows": 3}
    looked_at = prepare_sft(request(tokenizer, short, long, **keys))
    assert looked_at.validation is None
    assert [source["rows"] for source in looked_at.sources] == [20, 2000]
    assert {entry["kept"] for entry in looked_at.rows["by"]} >= {20}
