"""Work that several processes share: results come in the order of the items, as from one process."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from dualign.errors import DataError
from dualign.lifetime import end_with

Item = TypeVar("Item")
Result = TypeVar("Result")
_FUNCTION: dict[str, Callable[[Any], Any]] = {}
"""What a child does with each item, under its only key."""
_TOKENIZERS = "TOKENIZERS_PARALLELISM"


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int, title: str
) -> Iterator[Result]:
    """Yield `function(item)` of each item, in order; with one process, or one item, here.

    The function reaches the children by a fork where there is one, so nothing of it is copied; its
    results are pickled. A tokenizer of a child has one thread: the children fill the processors.

    Raises:
        DataError: a child ended without a word. What `function` raises for the first item that fails.
    """
    count = min(processes, len(items))
    if count <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        with (
            _one_tokenizer_thread(),
            ProcessPoolExecutor(
                count, mp_context=context, initializer=_start, initargs=(function, os.getpid())
            ) as pool,
        ):
            yield from pool.map(_call, items)
    except BrokenProcessPool as error:
        raise DataError(
            f"{title}: one of {count} processes was killed, probably for memory. "
            "Set data.num_proc to fewer."
        ) from error


def _start(function: Callable[[Any], Any], parent: int) -> None:
    """Make a child ready: it ends with its parent, and silently when a key interrupts both."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with(parent)
    _FUNCTION["function"] = function


def _call(item: Any) -> Any:
    return _FUNCTION["function"](item)


@contextmanager
def _one_tokenizer_thread() -> Iterator[None]:
    """Say it before the fork: `tokenizers` warns of a fork that nothing was said for."""
    before = os.environ.get(_TOKENIZERS)
    os.environ[_TOKENIZERS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TOKENIZERS]
        else:
            os.environ[_TOKENIZERS] = before
