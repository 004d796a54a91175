"""What is printed on: the console of tables, and progress on a terminal, in a log or in a notebook."""

import io
import sys
from typing import Any, TextIO

from rich.console import Console
from tqdm import tqdm

from dualign.notebook import Output, html_bar, in_notebook

_SECONDS = 30  # between two lines of progress in a log
_DELAY = 1  # seconds before a bar is shown


def wide_console(width: int = 160) -> Console:
    """A console for tables. A pipe has no width, and at rich's 80 columns tables would break."""
    console = Console()
    return console if console.is_terminal or console.width > 80 else Console(width=width)


def progress(
    total: int, label: str, *, unit: str = "B", done: int = 0, silent: bool = False
) -> "tqdm[Any]":
    """Return a bar on a terminal or in a notebook, and a plain line now and then elsewhere.

    Work that takes a second, or in a log half a minute, shows nothing.

    Args:
        unit: what is counted; bytes are shown in MB and GB.
        done: how much of the total was there before.
        silent: show nothing.
    """
    bytes_are_counted = unit == "B"
    settings: dict[str, Any] = {"total": total, "initial": done, "desc": label, "unit": unit}
    settings |= {"unit_scale": bytes_are_counted, "disable": silent, "delay": _DELAY}
    plain_unit = "" if bytes_are_counted else f" {unit.strip().removesuffix('s')}s"
    plain = f"{{desc}}: {{n_fmt}} of {{total_fmt}}{plain_unit}, {{elapsed}} so far, {{remaining}} to go{{postfix}}"
    if in_notebook():
        return _NotebookBar(**settings, bar_format=plain, mininterval=0.5)
    if not sys.stderr.isatty():
        settings |= {"file": _Lines(sys.stderr), "bar_format": plain, "dynamic_ncols": False}
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


class _NotebookBar(tqdm):
    """A bar of tqdm in an `Output`. It stays when the work is done, unless `leave` is false."""

    def __init__(self, **settings: Any) -> None:
        self._output = Output()
        super().__init__(**settings, file=_Nowhere())

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the state; tqdm calls it whenever that is due."""
        text = str(self) if msg is None else msg
        self._output.show(html_bar(self.n, self.total, text) if text else "", text)
        return True


class _Nowhere(io.TextIOBase):
    """What tqdm prints beside its display, such as the end of a line, isn't for a notebook."""

    def write(self, text: str) -> int:
        return len(text)
