"""Every kind of file, packed or not, and streams: the same rows, drawn by the seed, on disk."""

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import zstandard

from dualign.config import Document, parse
from dualign.data.config import SourceConfig
from dualign.data.rows.loading import _first_shuffled, _hub, load_source, sample_rows
from dualign.data.seeds import rng, rows_to_read
from dualign.errors import ConfigError, DataError

ROWS = [{"prompt": f"Hi {number}", "completion": "Yo"} for number in range(50)]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = datasets.Dataset.from_list(ROWS)
    table.to_json(tmp_path / "a.jsonl")
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / "a.arrow")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    return tmp_path


@pytest.mark.parametrize("packed", PACKED)
def test_every_kind_of_file_is_read_packed(folder: Path, packed: str) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow"):
        (folder / f"{name}{packed}").write_bytes(PACKED[packed]((folder / name).read_bytes()))
        table = load_source(SourceConfig(path=f"{name}{packed}"), base=folder)
        assert [row["prompt"] for row in table] == [row["prompt"] for row in ROWS], name


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.arrow"])
def test_a_packed_file_that_is_written_again_gives_its_new_rows(folder: Path, name: str) -> None:
    packed = folder / f"{name}.gz"
    packed.write_bytes(gzip.compress((folder / name).read_bytes()))
    assert len(load_source(SourceConfig(path=str(packed)))) == 50
    few = folder / "few"
    few.mkdir()
    table = datasets.Dataset.from_list(ROWS[:2])
    table.to_json(few / "a.jsonl")
    table.to_csv(few / "a.csv", index=False)
    table.to_parquet(few / "a.parquet")
    table.save_to_disk(few / "saved")
    next((few / "saved").glob("*.arrow")).rename(few / "a.arrow")
    packed.write_bytes(gzip.compress((few / name).read_bytes()))
    for streaming in (False, True):
        assert len(load_source(SourceConfig(path=str(packed), streaming=streaming))) == 2


def test_a_folder_and_a_glob_of_packed_and_plain_files(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    (tmp_path / "more").mkdir()
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines[:20]))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(b"".join(lines[20:30])))
    (tmp_path / "more" / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[30:])))
    (tmp_path / "_notes.txt").write_text("no data")
    assert load_source(SourceConfig(path="."), base=tmp_path)["prompt"][:] == [
        row["prompt"] for row in ROWS
    ]
    assert len(load_source(SourceConfig(path="*.jsonl*"), base=tmp_path)) == 30


def test_zst_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"pip install 'dualign\[data\]'"):
        load_source(SourceConfig(path="a.jsonl.zst"), base=tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.json"])
def test_a_stream_gives_the_rows_that_the_seed_draws_without_it(folder: Path, name: str) -> None:
    def drawn(seed: int, *, streaming: bool) -> tuple[list[str], list[int], int]:
        source = SourceConfig(path=name, rows=7, streaming=streaming)
        made = sample_rows(source, seed=seed, number=0, base=folder)
        return made.table["prompt"][:], made.rows.tolist(), made.total

    prompts, places, total = drawn(3, streaming=True)
    assert (prompts, places, total) == drawn(3, streaming=False)
    assert prompts == [ROWS[place]["prompt"] for place in places] and total == 50
    assert places != drawn(4, streaming=True)[1]


def test_streamed_rows_are_arrow_on_disk_in_shards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualign.data.rows.loading._SHARD_ROWS", 20)
    table = load_source(SourceConfig(path="a.jsonl", streaming=True), base=folder)
    assert table["prompt"][:] == [row["prompt"] for row in ROWS]
    assert len({file["filename"] for file in table.cache_files}) == 3


def test_streamed_objects_of_different_keys_keep_their_own(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Hi", "x": item}]}
        for item in ({"a": 1}, {"b": "c"})
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load_source(SourceConfig(path="a.jsonl", streaming=True), base=tmp_path)
    assert [row["messages"][0]["x"] for row in table] == [{"a": 1}, {"b": "c"}]


def test_a_hub_stream_stops_at_its_rows_and_does_not_begin_with_the_first() -> None:
    opened: list[int] = []

    def shards(numbers: list[int]) -> object:
        for shard in numbers:
            opened.append(shard)
            for number in range(300):
                yield {"prompt": f"{shard}/{number}"}

    stream = datasets.IterableDataset.from_generator(
        shards, gen_kwargs={"numbers": list(range(40))}
    )
    source = SourceConfig(path="owner/name", rows=100, streaming=True)
    made = _first_shuffled(source, stream, 5)
    prompts = made.table["prompt"][:]
    assert len(set(prompts)) == 100 and made.total == 100
    assert len(set(opened)) < 40, "files that aren't needed aren't opened"
    assert sum(prompt.startswith("0/") for prompt in prompts) < 50
    again = _first_shuffled(source, stream, 5)
    assert (again.table["prompt"][:], again.sha256) == (prompts, made.sha256)
    assert _first_shuffled(source, stream, 6).table["prompt"][:] != prompts
    everything = _first_shuffled(SourceConfig(path="o/n", rows=20_000, streaming=True), stream, 5)
    assert everything.total == len(everything.rows) == 12_000


def test_a_data_set_of_many_files_is_streamed_as_the_hub_gives_it(tmp_path: Path) -> None:
    """The reader of hub ids also takes a folder laid out as a hub dataset is."""
    (tmp_path / "data").mkdir()
    for shard in range(5):
        rows = [{"prompt": f"{shard}/{number}", "completion": "Yo"} for number in range(50)]
        name = f"train-{shard:05d}-of-00005.parquet"
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / name)
    source = SourceConfig(path=str(tmp_path), rows=60, streaming=True)
    made = _first_shuffled(source, _hub(source), 5)
    prompts = made.table["prompt"][:]
    assert len(set(prompts)) == 60 and made.table.column_names == ["prompt", "completion"]
    assert [prompt for prompt in prompts if prompt.startswith("0/")] != prompts


def test_rows_are_drawn_by_number_without_favour() -> None:
    source = SourceConfig(path="r", rows=10)
    seen = np.zeros(100)
    for seed in range(400):
        drawn = rows_to_read(100, source, rng(seed, "weight"))
        assert len(set(drawn.tolist())) == 10 and sorted(drawn) == drawn.tolist()
        seen[drawn] += 1
    # 400 draws of a tenth: 40 each, with a deviation of 6; the first ten together 400 and 18
    assert seen.min() > 20 and seen.max() < 70
    assert 325 < seen[:10].sum() < 475
    assert rows_to_read(9, source, rng(0, "weight")).tolist() == list(range(9)), "at most"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": 0.5, "rows": 3}, "data.rows: weight is given too: expected one"),
        ({"tokens": 5, "share": 0.5}, "data.share: tokens is given too: expected one of them"),
        ({"tokens": 0}, "data.tokens: expected 1 or more, found 0"),
        ({"share": 1.5}, "data.share: expected more than 0 and at most 1, found 1.5"),
        ({"weight": 0}, "data.weight: expected more than 0"),
        (
            {"streaming": True, "split": "train[:10]"},
            "data.split: a stream has no slices (train[:10]): use rows",
        ),
        ({"row": 3}, "data.row: unknown key (did you mean 'rows'?)"),
    ],
)
def test_amounts_that_cannot_be_are_refused_with_the_recipe(
    given: dict[str, object], message: str
) -> None:
    document = Document(file="r.yaml")
    parse(SourceConfig, {"path": "r", **given}, document, ("data",))
    with pytest.raises(ConfigError) as raised:
        document.raise_problems()
    assert message in str(raised.value)
