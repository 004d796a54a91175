"""Benchmarks over data sets of the Hub: `hub:aime25`, or `hub:aime25@FILE` with its rows in a file.

They are asked as SmolLM3's evaluation scripts ask them; hub.yaml lists them. A file is JSON lines or
Parquet, as the data set has it: for machines without a network.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from dualign.config import nearest, read_yaml
from dualign.errors import EvaluationError, excerpt
from dualign.tasks import hub_rows
from dualign.tasks.base import Problem
from dualign.tasks.hub_rows import Question, Reader, Tests
from dualign.tasks.listed import ListedTask, stamp
from dualign.verifiers.base import Verdict, Verifier, wrong
from dualign.verifiers.fences import last_block
from dualign.verifiers.table import verifier_of
from dualign.verifiers.unit_tests import UnitTestsVerifier

_PREFIX = "hub"
_READERS: Mapping[str, Reader] = {
    "aime": hub_rows.aime,
    "gsm_plus": hub_rows.gsm_plus,
    "gpqa": hub_rows.gpqa,
    "ifeval": hub_rows.ifeval,
    "livecodebench": hub_rows.livecodebench,
}
# What stands before a solution in LiveCodeBench, shortened: starter code names List and others.
_IMPORTS = """\
import sys, re, math, json, heapq, bisect, random, string, datetime, functools, itertools, collections
from typing import *
from math import *
from heapq import *
from bisect import *
from string import *
from functools import *
from itertools import *
from collections import *
sys.setrecursionlimit(50000)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ProgramsVerifier(UnitTestsVerifier):
    """The last code fence passes the row's tests, after the imports of LiveCodeBench."""

    takes_lists: ClassVar[bool] = True

    def read(self, expected: Any) -> Any:
        return UnitTestsVerifier.read(
            self, expected.code if isinstance(expected, Tests) else expected
        )

    def judge(self, answer: str, expected: Any) -> Verdict:
        block = last_block(answer)
        if block is None or not block.strip():
            return wrong("no code")
        return UnitTestsVerifier.judge(self, _IMPORTS + block, expected)


def load(name: str) -> tuple[ListedTask, ...]:
    """Return the task of a data set.

    Raises:
        EvaluationError: no such data set, its rows can't be had, or one can't be read.
    """
    key, _, file = name.partition("@")
    sets = _sets()
    if key not in sets:
        raise EvaluationError(
            f"{_PREFIX}:{key}: no such data set{nearest(key, [*sets])}; expected one of {', '.join(sets)}"
        )
    path = Path(file).expanduser()
    return (_task(key, file, stamp(path) if file else ()),)


def names() -> Iterator[tuple[str, str]]:
    """Yield what can be asked for, as (name, kind)."""
    yield from ((name, "task") for name in _sets())


@cache
def _sets() -> Mapping[str, Any]:
    sets: Mapping[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml")).value
    return sets


@cache
def _task(name: str, file: str, stamp: Any) -> ListedTask:
    """Read a task once; `stamp` tells a file that was written again from the one before."""
    entry = _sets()[name]
    rows = _file_rows(name, Path(file).expanduser()) if file else _hub_rows(name, entry)
    words = entry.get("words")
    read = hub_rows.global_mmlu(**words) if words else _READERS[entry["read"]]
    extra = {"language": entry["language"]} if "language" in entry else {}
    problems: list[Problem] = []
    bare: list[str] = []
    left_out = Counter[str]()
    for number, row in enumerate(rows, 1):
        question = _question(read, row, f"{_PREFIX}:{name}, row {number}")
        if isinstance(question, str):
            left_out[question] += 1
            continue
        bare.append(question.bare)
        problems.append(
            Problem(
                id=question.id or str(number),
                messages=({"role": "user", "content": question.text},),
                expected=question.expected,
                extra=extra,
                line=number,
            )
        )
    if not problems:
        raise EvaluationError(f"{_PREFIX}:{name}: holds no rows that can be asked")
    return ListedTask(
        name=name,
        rows=f"{_PREFIX}:{name} ({file or entry['dataset']})",
        check=_check(entry["verifier"]),
        listed=tuple(problems),
        bare=tuple(bare),
        left_out=left_out,
        dataset={"path": entry["dataset"], "config": entry["subset"], "split": entry["split"]},
    )


def _check(kind: str) -> Verifier:
    return _ProgramsVerifier() if kind == "programs" else verifier_of(kind)


def _question(read: Reader, row: Any, place: str) -> Question | str:
    try:
        return read(row)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise EvaluationError(
            f"{place}: isn't a row of this data set ({type(error).__name__}: {error}); it has "
            f"{', '.join(sorted(row)) if isinstance(row, Mapping) else excerpt(row)}"
        ) from None


def _file_rows(name: str, file: Path) -> list[Any]:
    if not file.is_file():
        raise EvaluationError(f"{_PREFIX}:{name}@{file}: no such file; expected .jsonl or .parquet")
    if file.suffix == ".parquet":
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table

        try:
            rows: list[Any] = read_table(file).to_pylist()
        except ArrowInvalid as error:
            raise EvaluationError(f"{file}: isn't Parquet ({error})") from None
        return rows
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise EvaluationError(f"{file}:{number}: not JSON ({error})") from None
    return rows


def _hub_rows(name: str, entry: Mapping[str, Any]) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(entry["dataset"], entry["subset"], split=entry["split"])
    except (OSError, DatasetsError, ValueError, RuntimeError) as error:
        raise EvaluationError(
            f"{_PREFIX}:{name}: the data set {entry['dataset']} ({entry['subset']}, {entry['split']}) "
            f"can't be had here ({type(error).__name__}: {excerpt(str(error))}). Load it where there is "
            f"a network (a gated one after `hf auth login`) and copy the cache (HF_HOME), or give its rows: "
            f"{_PREFIX}:{name}@FILE"
        ) from error
