"""What a command prints on: the console of its tables, and its progress."""

import sys
from typing import Any, TextIO

from rich.console import Console
from tqdm import tqdm

_SECONDS = 30  # between two lines of progress in a log


def wide_console(width: int = 160) -> Console:
    """A console for tables. A pipe has no width, and at rich's 80 columns tables would break."""
    console = Console()
    return console if console.is_terminal or console.width > 80 else Console(width=width)


def progress(
    total: int, label: str, *, unit: str = "B", done: int = 0, silent: bool = False
) -> "tqdm[Any]":
    """Return a bar on a terminal, and a plain line now and then where stderr is none.

    Work that takes a second, or in a log half a minute, shows nothing.

    Args:
        unit: what is counted; bytes are shown in MB and GB.
        done: how much of the total was there before.
        silent: show nothing.
    """
    bytes_are_counted = unit == "B"
    settings: dict[str, Any] = {"total": total, "initial": done, "desc": label, "unit": unit}
    settings |= {"unit_scale": bytes_are_counted, "disable": silent, "delay": 1}
    if not sys.stderr.isatty():
        unit = "" if bytes_are_counted else f" {unit}"
        shown = (
            "{desc}: {n_fmt} of {total_fmt}"
            + unit
            + ", {elapsed} so far, {remaining} to go{postfix}"
        )
        settings |= {"file": _Lines(sys.stderr), "bar_format": shown, "dynamic_ncols": False}
        settings |= {"mininterval": _SECONDS, "maxinterval": _SECONDS, "delay": _SECONDS}
    return tqdm(**settings)


class _Lines:
    """A file that gets the redrawn states of a bar and writes each as a line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if line := text.replace("\r", "").strip():
            self._file.write(f"{line}\n")

    def flush(self) -> None:
        self._file.flush()
