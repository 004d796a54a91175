"""A diagnosis for people: a table by severity, with what it means and the fix; and for machines."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from dualign.data.conversation import MODES
from dualign.doctor.doctor import Diagnosis
from dualign.doctor.findings import Finding, Findings, Group

ROWS_SHOWN = 3
_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}


def show(diagnosis: Diagnosis, *, console: Console | None = None) -> None:
    """Print the findings, the worst first, then the account of the rows."""
    console = console or Console()
    for group in diagnosis.findings.groups():
        _show_group(group, diagnosis, console)
    for line in mode_lines(diagnosis.rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(closing_line(diagnosis), markup=False, highlight=False, soft_wrap=True)


def as_json(diagnosis: Diagnosis) -> str:
    """`{"findings": [...], "rows": {"in", "kept", "dropped"}}`. `count` is how many rows of the source
    have the code at this severity; at most 1,000 of them are listed.
    """
    counts = diagnosis.findings.counts
    findings = [_entry(one, counts) for one in diagnosis.findings.all()]
    rows = {name: diagnosis.rows.get(name, 0) for name in ("in", "kept")}
    dropped = diagnosis.rows.get("dropped", {})
    return json.dumps({"findings": findings, "rows": {**rows, "dropped": dropped}}, indent=2)


def mode_lines(rows: Mapping[str, Any]) -> list[str]:
    """What each mode has, in rows and in tokens."""
    entries = rows.get("by", ())
    total = sum(entry["supervised_tokens"] for entry in entries)
    lines = []
    for mode in MODES:
        own = [entry for entry in entries if entry["mode"] == mode and entry["kept"]]
        kept, tokens, supervised = (
            sum(entry[name] for entry in own) for name in ("kept", "tokens", "supervised_tokens")
        )
        if own:
            share = f"{supervised / total:.1%}" if total else "-"
            lines.append(
                f"{mode}: {kept:,} rows, {tokens:,} tokens, {supervised:,} supervised ({share})"
            )
    return lines


def closing_line(diagnosis: Diagnosis) -> str:
    """`120 rows in, 118 kept, 2 dropped (too_long 2). 1 error, 0 warnings, 3 notes.`"""
    rows = diagnosis.rows
    dropped = rows.get("dropped", {})
    listed = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
    out = f"{sum(dropped.values()):,} dropped" + (f" ({listed})" if listed else "")
    counted = [_counted(diagnosis.findings, *one) for one in _NAMES]
    return (
        f"{rows.get('in', 0):,} rows in, {rows.get('kept', 0):,} kept, {out}. {', '.join(counted)}."
    )


_NAMES = (("error", "error"), ("warning", "warning"), ("info", "note"))


def _counted(findings: Findings, severity: str, word: str) -> str:
    count = sum(1 for group in findings.counts if group.severity == severity)
    return f"{count} {word}{'' if count == 1 else 's'}"


def _show_group(group: Group, diagnosis: Diagnosis, console: Console) -> None:
    kept, count = diagnosis.findings.kept[group], diagnosis.findings.counts[group]
    place = f"  {group.source}" if group.source else ""
    times = f"  {count:,} rows{_share(group, count, diagnosis.rows)}" if count > 1 else ""
    style = _STYLES[group.severity]
    console.print(
        f"[{style}]{group.severity}[/] [bold]{group.code}[/]{escape(place)}{times}", highlight=False
    )
    for finding in kept[:ROWS_SHOWN]:
        where = f"row {finding.row}: " if finding.row is not None else ""
        _indented(f"{where}{finding.message}", console)
    _indented(f"means: {kept[0].means}", console)
    _indented(f"fix: {kept[0].fix}", console)
    console.print()


def _share(group: Group, count: int, rows: Mapping[str, Any]) -> str:
    """Which part of its source's rows has a code."""
    own = [one["in"] for one in rows.get("by", ()) if group.source.endswith(one["source"])]
    return f" ({count / sum(own):.1%})" if own and sum(own) >= count else ""


def _indented(text: str, console: Console) -> None:

    console.print(Padding(Text(text), (0, 0, 0, 2)))


def _entry(finding: Finding, counts: Mapping[Group, int]) -> dict[str, Any]:
    group = Group(finding.code, finding.source, finding.severity)
    return {
        "code": finding.code,
        "severity": finding.severity,
        "source": finding.source,
        "row": finding.row,
        "message": finding.message,
        "means": finding.means,
        "fix": finding.fix,
        "count": counts[group],
    }
