"""A rank that hangs within a step ends the run, and one that works elsewhere doesn't."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.sft.config import SFTStage
from dualign.training.hangs import Progress, hanging, seconds_to_a_hang
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
        (replace(WORKING, inside=False), {1}, [1]),
    ],
    ids=["not in a collective", "all in collectives", "behind", "outside of a step", "stopped"],
)
def test_the_rank_that_others_wait_for(
    second: Progress, frozen: set[int], expected: list[int]
) -> None:
    assert [rank.rank for rank in hanging([WAITING, second, THIRD], frozen)] == expected


def test_seconds_are_those_of_a_recipe_if_it_has_any() -> None:
    data = DataConfig(sources=(SourceConfig(path="rows.jsonl"),))
    stage = SFTStage(name="sft", model="m", data=data)
    assert seconds_to_a_hang(stage) == 45
    assert seconds_to_a_hang(replace(stage, train={"torch_compile": True})) == 600
    settings = {"torch_compile": True, "ddp_timeout": 7}
    assert seconds_to_a_hang(replace(stage, train=settings)) == 7


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
