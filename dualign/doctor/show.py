"""Print a diagnosis, worst findings first, or return it as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from dualign.data.conversation import MODES, PLAIN_TEXT
from dualign.doctor.doctor import Diagnosis
from dualign.doctor.findings import Finding, FindingGroup, Findings
from dualign.doctor.show_trials import show_trials, trials_record

_SHOWN = 3
_ROWS_NAMED = 10
_MESSAGE_CHARACTERS = 800
_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}


def show(diagnosis: Diagnosis, *, console: Console | None = None) -> None:
    """Print the findings, worst first, then the rows in and kept."""
    console = console or Console()
    if diagnosis.trials:
        show_trials(diagnosis.trials, console)
        console.print()
    for group in diagnosis.findings.groups():
        _show_group(group, diagnosis, console)
    for line in _mode_lines(diagnosis.rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_closing_line(diagnosis), markup=False, highlight=False, soft_wrap=True)


def as_json(diagnosis: Diagnosis) -> str:
    """Return `{"findings": [...], "rows": {"in", "kept", "dropped"}}`, and the `trials` of a template
    without data.

    `count` of a finding is the number of all with its code, source and severity; at most 1,000 of
    them are listed.
    """
    counts = diagnosis.findings.counts
    findings = [_entry(finding, counts) for finding in diagnosis.findings.all()]
    rows = {name: diagnosis.rows.get(name, 0) for name in ("in", "kept")}
    dropped = diagnosis.rows.get("dropped", {})
    trials = {"trials": trials_record(diagnosis.trials)} if diagnosis.trials else {}
    content: dict[str, Any] = {"findings": findings, "rows": {**rows, "dropped": dropped}, **trials}
    return json.dumps(content, indent=2)


def _mode_lines(rows: Mapping[str, Any]) -> list[str]:
    """Return a line for each mode: rows, tokens, supervised tokens."""
    entries = rows.get("by", ())
    total = sum(entry["supervised_tokens"] for entry in entries)
    lines = []
    for mode in (*MODES, PLAIN_TEXT):
        of_mode = [entry for entry in entries if entry["mode"] == mode and entry["kept"]]
        count, tokens, supervised = (
            sum(entry[name] for entry in of_mode)
            for name in ("kept", "tokens", "supervised_tokens")
        )
        if of_mode:
            share = f"{supervised / total:.1%}" if total else "-"
            lines.append(
                f"{mode}: {count:,} rows, {tokens:,} tokens, {supervised:,} supervised ({share})"
            )
    return lines


def _closing_line(diagnosis: Diagnosis) -> str:
    """Return `120 rows in, 118 kept, 2 dropped (too_long 2). 1 error, 0 warnings, 3 notes.`"""
    rows = diagnosis.rows
    dropped = rows.get("dropped", {})
    listed = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
    out = f"{sum(dropped.values()):,} dropped" + (f" ({listed})" if listed else "")
    nouns = {"error": "error", "warning": "warning", "info": "note"}
    counted = ", ".join(_counted(diagnosis.findings, *item) for item in nouns.items())
    return f"{rows.get('in', 0):,} rows in, {rows.get('kept', 0):,} kept, {out}. {counted}."


def _counted(findings: Findings, severity: str, noun: str) -> str:
    count = sum(1 for group in findings.counts if group.severity == severity)
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _show_group(group: FindingGroup, diagnosis: Diagnosis, console: Console) -> None:
    listed, count = diagnosis.findings.listed[group], diagnosis.findings.counts[group]
    source = f"  {group.source}" if group.source else ""
    times = f"  {count:,} rows{_share(group, count, diagnosis.rows)}" if count > 1 else ""
    style = _STYLES[group.severity]
    console.print(
        f"[{style}]{group.severity}[/] [bold]{group.code}[/]{escape(source)}{times}",
        highlight=False,
    )
    examples = listed[:1] if listed[0].row is not None else listed[:_SHOWN]
    for finding in examples:
        where = f"row {finding.row}: " if finding.row is not None else ""
        _indented(f"{where}{_shortened(finding.message)}", console)
    others = [str(finding.row) for finding in listed[1:_ROWS_NAMED] if finding.row is not None]
    if others:
        more = ", ..." if count > _ROWS_NAMED else ""
        _indented(f"also row{'s' * (len(others) > 1)} {', '.join(others)}{more}", console)
    _indented(f"means: {listed[0].means}", console)
    _indented(f"fix: {listed[0].fix}", console)
    console.print()


def _shortened(message: str) -> str:
    """Return a message without its middle if it would fill the screen."""
    half = _MESSAGE_CHARACTERS // 2
    return message if len(message) <= 2 * half else f"{message[:half]} ... {message[-half:]}"


def _share(group: FindingGroup, count: int, rows: Mapping[str, Any]) -> str:
    """Format the share of the source's rows with this code."""
    by = [entry for entry in rows.get("by", ()) if group.source.endswith(entry["source"])]
    total = sum(entry["in"] for entry in by)
    return f" ({count / total:.1%})" if by and total >= count else ""


def _indented(text: str, console: Console) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 2), expand=False))


def _entry(finding: Finding, counts: Mapping[FindingGroup, int]) -> dict[str, Any]:
    group = FindingGroup(finding.code, finding.source, finding.severity)
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
