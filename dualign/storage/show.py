"""Runs and what may go from the disk, as tables in the terminal."""

from collections.abc import Collection

from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from dualign.storage.cleaning import Removable
from dualign.storage.runs import RunFolder


def runs_table(runs: Collection[RunFolder]) -> Table:
    """Build the table of runs: a row for each stage, and one for the whole of each run."""
    table = Table(title="Runs", title_justify="left")
    for name in ("stage", "kind", "state", "figure", "time", "started (UTC)", "size"):
        table.add_column(name, justify="right" if name in ("time", "size") else "left")
    for run in runs:
        state = "running" if run.is_running else ""
        table.add_row(*map(Text, (str(run.path), "", state, "", "", "", size_text(run.size))))
        for stage in run.stages:
            started = stage.started[:16].replace("T", " ")
            figures = (stage.state, stage.figure, _duration(stage.seconds), started)
            row = (f"  {stage.name}", stage.kind, *figures, size_text(stage.size))
            table.add_row(*map(Text, row), end_section=stage is run.stages[-1])
    return table


def removables_table(items: Collection[Removable]) -> Table:
    """Build the table of what may go."""
    table = Table(title="What may go", title_justify="left")
    for name in ("kind", "path", "what is lost", "size"):
        table.add_column(name, justify="right" if name == "size" else "left")
    for item in items:
        table.add_row(*map(Text, (item.kind, str(item.path), item.cost, size_text(item.size))))
    return table


def size_text(size: int) -> str:
    """Format bytes: 12.3 MB."""
    number = str(tqdm.format_sizeof(size, "", 1000))
    return f"{number} B" if number[-1:].isdecimal() else f"{number[:-1]} {number[-1:]}B"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(tqdm.format_interval(seconds))
