"""A rank that hangs within a step ends the run, and one that works elsewhere doesn't."""

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.rundir import write_json
from dualign.sft.config import SFTStage
from dualign.training.hangs import EndHangs, Progress, hanging, seconds_to_a_hang
from tests import processes
from tests.training.conftest import save_model, sum_rows, write_rows
from tests.training.test_many_processes import start, write_recipe

WAITING = Progress(
    rank=0,
    local_rank=0,
    host="h",
    pid=1,
    launcher=1,
    tick=9,
    parts=7,
    inside=True,
    place="",
    waits=True,
)
WORKING = replace(WAITING, rank=1, waits=False)
THIRD = replace(WAITING, rank=2)


@pytest.mark.parametrize(
    ("second", "frozen", "expected"),
    [
        (WORKING, set(), [1]),
        (replace(WORKING, waits=True), set(), [0, 1, 2]),
        (replace(WAITING, rank=1, parts=6), set(), [1]),
        (replace(WORKING, inside=False), set(), []),  # such as rank 0 that logs
        (replace(WORKING, inside=False), {1}, []),  # a disk may hold up its thread as it saves
        (replace(WAITING, rank=1), {1}, [1]),
    ],
    ids=[
        "not in a collective",
        "all in collectives",
        "behind",
        "outside of a step",
        "stopped outside of a step",
        "stopped",
    ],
)
def test_the_rank_that_others_wait_for(
    second: Progress, frozen: set[int], expected: list[int]
) -> None:
    assert [rank.rank for rank in hanging([WAITING, second, THIRD], frozen)] == expected


def test_seconds_are_those_of_a_recipe_if_it_has_any() -> None:
    data = DataConfig(sources=(SourceConfig(path="rows.jsonl"),))
    stage = SFTStage(name="sft", model="m", data=data)
    assert seconds_to_a_hang(stage) == 300
    assert seconds_to_a_hang(replace(stage, train={"torch_compile": True})) == 600
    settings = {"torch_compile": True, "ddp_timeout": 7}
    assert seconds_to_a_hang(replace(stage, train=settings)) == 7


class Watched(EndHangs):
    """Rank 0 of two, in its third step, which looks when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 300)
        self._rank, self._local_rank, self._count = 0, 0, 2
        for _ in range(2):
            self.on_step_begin()
            self.on_step_end()
        self.on_step_begin()
        self.ended: list[int] = []

    def look(self, seconds: int, *, frozen: bool = False, moves: bool = False) -> list[int]:
        """Look every 3 s at rank 1, which is as far as rank 0 is."""
        for _ in range(0, seconds, 3):
            tick = 0 if frozen else self._tick
            place = f"line {self._tick}" if moves else ""
            other = replace(WORKING, parts=self._parts, tick=tick, place=place)
            write_json(self._file(1), asdict(other))
            self._look(3.0)
        return self.ended

    def _end(self, ranks: list[Progress], own: Progress, seconds: float) -> None:
        self.ended += [rank.rank for rank in ranks]


def test_a_row_that_is_much_longer_than_those_before_is_no_hang(tmp_path: Path) -> None:
    assert Watched(tmp_path).look(300) == []
    assert 1 in Watched(tmp_path).look(321)
    assert Watched(tmp_path).look(600, moves=True) == [], "its main thread goes on"


def test_a_rank_that_is_stopped_is_noticed_within_a_minute(tmp_path: Path) -> None:
    assert 1 in Watched(tmp_path).look(66, frozen=True)
    slow = Watched(tmp_path)
    slow._slowest = 10.0
    assert slow.look(90, frozen=True) == [], "parts of 10 s may take 100"


def test_files_of_others_are_left_alone_while_this_rank_goes_on(tmp_path: Path) -> None:
    """Hundreds of ranks share one network folder."""
    watched = Watched(tmp_path)
    (tmp_path / "rank-1.json").mkdir()  # nobody could read it
    for _ in range(9):
        watched.on_substep_end()
        watched._look(9.0)
    assert watched.ended == [] and (1, "life") not in watched._signs


def test_a_folder_that_is_away_for_a_while_ends_nothing(tmp_path: Path) -> None:
    """Else the thread would end, and the others take its rank for one that is stopped."""
    watched = Watched(tmp_path / "gone")
    watched._every = 0.001
    thread = Thread(target=watched._watch)
    thread.start()
    processes.wait_until(lambda: watched._tick > 2)
    watched._over.set()
    thread.join()
    assert watched.ended == []


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"parts": 0}


@pytest.mark.slow
def test_a_launch_ends_with_a_rank_that_hangs(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path / "model", tokenizer, kind="smollm3")
    write_rows(tmp_path / "train.jsonl", sum_rows(120))
    more = {"max_steps": 10**6, "ddp_timeout": 3, "save_strategy": "no", "logging_steps": 1000}
    recipe = write_recipe(tmp_path, "hang", batch=1, stages=("full-sft",), launch="fsdp2", **more)
    process = start(recipe)
    ranks = tmp_path / "hang" / ".full-sft.partial" / "checkpoints" / "ranks"
    processes.wait_until(
        lambda: all(_read(ranks / f"rank-{rank}.json")["parts"] > 20 for rank in (0, 1))
    )
    os.kill(_read(ranks / "rank-1.json")["pid"], signal.SIGSTOP)
    output, _ = process.communicate()
    assert process.returncode
    last = output[output.rindex("failed first: ") :]
    assert last.startswith("failed first: no progress for ")
    assert "rank 1 on" in last
