"""What a dry run prints: files and sizes, what stays, the card, every check, and what to do next."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualign.publish.publish import Prepared

_STYLES = {"ok": "green", "failed": "bold red", "allowed": "yellow", "skipped": "dim"}
_WORDS = {"ok": "OK", "failed": "FAILED", "allowed": "allowed", "skipped": "not checked"}


def show(prepared: Prepared, *, console: Console | None = None, card: bool = True) -> None:
    """Print all of it, the checks last, where people look."""
    console = console or Console()
    # A pipe has no width; without one rich would break the tables at 80 columns.
    console = console if console.is_terminal or console.width > 80 else Console(width=120)
    console.print(_files(prepared.files))
    left_out = prepared.subject.plan.left_out
    if left_out:
        console.print(Text("Stays here: " + ", ".join(f"{name} ({why})" for name, why in left_out)))
    if card:
        console.rule("README.md, as it will be")
        console.print(Text(prepared.card))
        console.rule()
    console.print(_checks(prepared))


def _files(files: Mapping[str, int]) -> Table:
    table = Table(title="Files", title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    for name, size in files.items():
        table.add_row(Text(name), human(size))
    table.add_section()
    table.add_row(f"{len(files)} files", human(sum(files.values())))
    return table


def human(size: int) -> str:
    """`512 B`, `7.1 kB`, `538.1 MB`, `6.2 GB`."""
    if size < 1000:
        return f"{size} B"
    power = min(3, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def _checks(prepared: Prepared) -> Table:
    table = Table(title="Checks", title_justify="left", show_lines=True)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for one in prepared.checks:
        table.add_row(one.name, Text(_WORDS[one.state], style=_STYLES[one.state]), Text(one.found))
    return table
