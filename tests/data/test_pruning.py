"""The folder of prepared data stays within its bound, and what goes is told."""

import logging
import os
from pathlib import Path

import datasets
import pytest
from filelock import FileLock

from dualign.data.cache import cached
from dualign.data.pruning import make_room
from dualign.errors import DataError


def entry(folder: Path, name: str, *, used: int, size: int = 1000) -> Path:
    made = folder / name / "train"
    made.mkdir(parents=True)
    (made / "data.arrow").write_bytes(bytes(size))
    os.utime(folder / name, (used, used))
    return folder / name


@pytest.fixture
def bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three entries of 1,000 bytes that may hold 2,500."""
    monkeypatch.setenv("DUALIGN_TOKENS_GB", "0.0000025")
    for used, name in enumerate(("old", "older", "new")):
        entry(tmp_path, name, used=(2, 1, 3)[used])
    return tmp_path


def test_what_was_used_longest_ago_goes_and_is_told(
    bounded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert make_room(bounded, spare=bounded / "new") == [bounded / "older"]
    assert sorted(path.name for path in bounded.iterdir() if path.is_dir()) == ["new", "old"]
    assert "deleted older (0.0 GB), used longest ago" in caplog.text
    assert make_room(bounded, spare=bounded / "new") == []


def test_the_new_entry_and_those_in_use_stay(
    bounded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALIGN_TOKENS_GB", "0")
    with FileLock(bounded / "old.lock"):
        assert make_room(bounded, spare=bounded / "new") == [bounded / "older"]
    assert make_room(bounded, spare=bounded / "new") == [bounded / "old"]


def test_nothing_goes_within_the_bound(bounded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "1", "0.000003"):
        monkeypatch.setenv("DUALIGN_TOKENS_GB", given)
        assert make_room(bounded, spare=bounded / "new") == []


def test_keeping_something_new_makes_room_and_reading_counts_as_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALIGN_TOKENS", str(tmp_path))
    table = datasets.Dataset.from_dict({"input_ids": [[1, 2]]})

    def make() -> tuple[dict[str, datasets.Dataset], dict[str, int]]:
        return {"train": table}, {"fill": 1}

    for used, name in enumerate(("first", "second")):
        cached(name, make)
        os.utime(tmp_path / name, (used, used))
    cached("first", make)
    size = sum(file.stat().st_size for file in (tmp_path / "first").rglob("*") if file.is_file())
    monkeypatch.setenv("DUALIGN_TOKENS_GB", str(2.5 * size / 1e9))
    cached("third", make)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["first", "third"]


@pytest.mark.parametrize("given", ["lots", "-1", "nan"])
def test_a_bound_that_is_none_is_refused(
    bounded: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("DUALIGN_TOKENS_GB", given)
    with pytest.raises(DataError, match=f"DUALIGN_TOKENS_GB is '{given}': expected gigabytes"):
        make_room(bounded, spare=bounded / "new")
