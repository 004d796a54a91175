"""The comparison of both modes for the terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dualign.evaluation.divergence import Divergence
from dualign.evaluation.scores import change_text, percent
from dualign.export.both_modes import BothModes, ModeComparison, Rate


def modes_summary(result: BothModes, name: str = "") -> Group:
    """Return the table of both modes, and what is beyond the bounds; `name` is the export's."""
    title = f"{name} beside {result.reference}, on {result.questions}".lstrip()
    table = Table(title=title, title_justify="left")
    for column in ("", *(mode.mode for mode in result.modes)):
        table.add_column(column, justify="left" if not column else "right")
    for name, cells in _rows(result.modes):
        table.add_row(Text(name), *map(Text, cells))
    return Group(table, *(Text(f"beyond the bounds: {fault}") for fault in result.faults()))


def verdict(name: str, result: BothModes | None) -> str:
    """Return in a line whether an export is within the bounds."""
    if result is None:
        return f"{name}: not compared with the model in both modes"
    if result.faults():
        return f"{name}: beyond the bounds, written because of --allow-worse"
    return f"{name}: within the bounds in {' and '.join(mode.mode for mode in result.modes)}"


def _rows(modes: tuple[ModeComparison, ...]) -> list[tuple[str, list[str]]]:
    rows = [
        ("answers (the same, to the letter)", [f"{m.answers} ({m.same})" for m in modes]),
        ("accuracy %, and its change", [_rate(m.accuracy) for m in modes]),
        ("closed traces %", [_rate(m.closed) for m in modes]),
        ("without a leak %", [_rate(m.unleaked) for m in modes]),
        ("finished %", [_rate(m.finished) for m in modes]),
        ("KL in traces, nats a token", [_kl(m.trace) for m in modes]),
        ("KL in answers", [_kl(m.answer) for m in modes]),
        ("same likeliest token in traces", [_agreement(m.trace) for m in modes]),
        ("same likeliest token in answers", [_agreement(m.answer) for m in modes]),
    ]
    return rows


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "-"
    return f"{percent(rate.before)} -> {percent(rate.after)}  {change_text(rate.change)}"


def _kl(read: Divergence | None) -> str:
    return "-" if read is None or read.kl is None else f"{read.kl:.4f}"


def _agreement(read: Divergence | None) -> str:
    return (
        "-" if read is None or read.kl is None else f"{percent(read.agreement)} % of {read.tokens}"
    )
