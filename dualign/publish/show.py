"""The dry run in the terminal: files and sizes, files that stay, the card, every check."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualign.publish.checklist import CheckResult
from dualign.publish.release import StagedRelease
from dualign.terminal import wide_console

_STYLES = {"ok": "green", "failed": "bold red", "allowed": "yellow", "skipped": "dim"}
_WORDS = {"ok": "OK", "failed": "FAILED", "allowed": "allowed", "skipped": "not checked"}


def show(staged: StagedRelease, *, console: Console | None = None) -> None:
    """Print all of it, the checks last, where users look."""
    console = console or wide_console(120)
    console.print(_files(staged.files))
    left_out = staged.left_out
    if left_out:
        console.print(Text("Stays here: " + ", ".join(f"{name} ({why})" for name, why in left_out)))
    if card := staged.request.card:
        keys = {name for name in card.config.__slots__ if getattr(card.config, name)}
        console.print(Text(f"card: {', '.join(sorted(keys)) or 'empty'} (of {card.file})"))
    console.rule("README.md, as it will be")
    console.print(Text(staged.card))
    console.rule()
    console.print(_checks(staged.checks))


def _files(files: Mapping[str, int]) -> Table:
    table = Table(title="Files", title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    for name, size in files.items():
        table.add_row(Text(name), format_bytes(size))
    table.add_section()
    table.add_row(f"{len(files)} files", format_bytes(sum(files.values())))
    return table


def format_bytes(size: int) -> str:
    """`512 B`, `7.1 kB`, `538.1 MB`, `6.2 GB`."""
    if size < 1000:
        return f"{size} B"
    power = min(3, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def _checks(checks: Sequence[CheckResult]) -> Table:
    table = Table(title="Checks", title_justify="left", show_lines=True)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        state = Text(_WORDS[check.state], style=_STYLES[check.state])
        table.add_row(check.name, state, Text(check.message))
    return table
