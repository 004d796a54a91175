"""Tables that several processes write: the rows, their order and the first fault are those of one process."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from dualign.data.faults import RowError
from dualign.data.processes import map_in_order
from dualign.data.shards import Mapped, TableJob, write_tables
from dualign.errors import DataError

FEATURES = datasets.Features({"n": datasets.Value("int64"), "pid": datasets.Value("int64")})


def numbers(batch: Any, indices: Any) -> pa.Table:
    values = [number * 2 for number in batch["n"]]
    assert values == [2 * index for index in indices]
    return pa.table({"n": values, "pid": [os.getpid()] * len(values)}, schema=FEATURES.arrow_schema)


def table_of(processes: int) -> datasets.Dataset:
    count = 2_600
    rows = datasets.Dataset.from_dict({"n": list(range(count))})
    mapped = Mapped(rows=rows, function=numbers)
    job = TableJob(count=count, make=mapped, features=FEATURES, title="rows")
    empty = TableJob(count=0, make=mapped, features=FEATURES, title="none")
    none, table = write_tables([empty, job], processes=processes, doing="doubling")
    assert none.num_rows == 0 and none.features == FEATURES
    return table


def test_rows_come_in_their_order_from_any_number_of_processes() -> None:
    here, there = table_of(1), table_of(3)
    assert here["n"][:] == there["n"][:] == list(range(0, 5_200, 2))
    assert set(here["pid"][:]) == {os.getpid()}
    assert os.getpid() not in there["pid"][:] and len(set(there["pid"][:])) > 1
    assert here.features == there.features == FEATURES
    assert all(Path(file["filename"]).is_file() for file in there.cache_files)


def faulty(number: int) -> int:
    if number == 1:
        time.sleep(0.3)  # the later fault is there first
    if number:
        raise RowError("no_answer", "no answer", source="a", row=number)
    return number


def test_the_first_fault_is_raised_whoever_is_faster() -> None:
    with pytest.raises(RowError, match="a, row 1: no answer") as caught:
        list(map_in_order(faulty, range(4), processes=2, title="rows"))
    assert (caught.value.code, caught.value.row) == ("no_answer", 1)


def killed(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process_ends_the_work_with_a_message() -> None:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    with pytest.raises(DataError, match=r"packing: one of 2 processes was killed, .*num_proc"):
        list(map_in_order(killed, range(6), processes=2, title="packing"))
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before
