"""Rows prepared by several workers are those of one process: shards, key and account."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.prepare import DataRequest, Prepared, prepare
from dualign.data.text.template import load_template
from dualign.data.workers import PartDoneError, Share
from dualign.errors import DataError

Write = Callable[[list[dict[str, Any]], str], Path]


def chat(number: int) -> dict[str, Any]:
    trace = f"<think>\ncount {number}\n</think>\n\n" if number % 3 == 0 else ""
    turns = [
        {"role": "user", "content": f"How many? {number}"},
        {"role": "assistant", "content": f"{trace}There are {number}."},
    ]
    return {"messages": turns}


@pytest.fixture
def request_of(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> Callable[[DedupConfig | None], DataRequest]:
    def made(dedup: DedupConfig | None) -> DataRequest:
        rows = [chat(number % 90) for number in range(120)]
        sources = (
            SourceConfig(path=str(write_rows(rows, "a.jsonl")), weight=0.9),
            SourceConfig(path=str(write_rows([chat(100 + n) for n in range(7)], "b.jsonl"))),
        )
        data = DataConfig(sources=sources, max_tokens=128, validation_rows=5, dedup=dedup)
        return DataRequest(data, tokenizer, load_template("dualign"), seed=3)

    return made


def contents(folder: Path) -> dict[str, str]:
    """The shards and the account by name, with their bytes; without ids that `datasets` draws."""
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.suffix == ".arrow" or file.name == "about.json"
    }


def prepare_share(request: DataRequest, worker: int | None, workers: int) -> Prepared:
    share = Share(worker=worker, workers=workers)
    return prepare(replace(request, share=share), "conversation")


def part_done(request: DataRequest, worker: int) -> str:
    """What one of three workers says when it ends."""
    with pytest.raises(PartDoneError) as done:
        prepare_share(request, worker, 3)
    return str(done.value)


@pytest.mark.parametrize("dedup", [None, DedupConfig()])
def test_workers_write_the_shards_key_and_account_of_one_process(
    request_of: Callable[[DedupConfig | None], DataRequest],
    dedup: DedupConfig | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = request_of(dedup)
    monkeypatch.setenv("DUALIGN_TOKENS", str(tmp_path / "one"))
    alone = prepare(request, "conversation")
    monkeypatch.setenv("DUALIGN_TOKENS", str(tmp_path / "many"))
    if dedup:
        assert (
            part_done(request, 2) == "worker 2 of 3: screening: done; worker 0, 1 hasn't ended yet"
        )
        assert part_done(request, 0) == "worker 0 of 3: screening: done; worker 1 hasn't ended yet"
    # Of rows that were screened the last worker goes on, as do the others when they come again.
    assert part_done(request, 1) == "worker 1 of 3: tokenizing: done; worker 0, 2 hasn't ended yet"
    assert part_done(request, 0) == "worker 0 of 3: tokenizing: done; worker 2 hasn't ended yet"
    assert part_done(request, 2) == "worker 2 of 3: tokenizing: done"
    together = prepare_share(request, None, 3)
    (key,) = {entry.name for entry in (tmp_path / "one").iterdir() if entry.is_dir()}
    assert {entry.name for entry in (tmp_path / "many").iterdir() if entry.is_dir()} == {key}
    assert contents(tmp_path / "many" / key) == contents(tmp_path / "one" / key)
    assert (together.rows, together.groups) == (alone.rows, alone.groups)
    assert ("duplicate" in together.rows["dropped"]) == (dedup is not None)
    assert prepare_share(request, 0, 3).rows == alone.rows  # who comes late finds the result


def test_joining_keeps_parts_and_writes_those_that_nobody_wrote(
    request_of: Callable[[DedupConfig | None], DataRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = request_of(DedupConfig())
    monkeypatch.setenv("DUALIGN_TOKENS", str(tmp_path / "many"))
    written = []
    for _ in range(2):
        assert part_done(request, 1).startswith("worker 1 of 3: screening: done; worker 0, 2")
        (parts,) = (tmp_path / "many").glob("*.parts")
        written.append({path: path.stat().st_mtime_ns for path in parts.rglob("*.arrow")})
    assert written[0] == written[1] and len(written[0]) >= 3
    together = prepare_share(request, None, 3)
    assert not parts.exists()
    uncached = replace(request, data=replace(request.data, cache=False))
    assert together.rows == prepare(uncached, "conversation").rows


def test_workers_need_a_cache_to_meet_in(
    request_of: Callable[[DedupConfig | None], DataRequest],
) -> None:
    request = request_of(None)
    uncached = replace(request, data=replace(request.data, cache=False))
    with pytest.raises(DataError, match=r"workers meet in the cache: they need data\.cache: true"):
        prepare_share(uncached, 0, 2)
