"""Result of an export for the terminal: the files, and the answers next to each other, and both modes."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dualign.data.conversation import Mode
from dualign.export.check import AnswerComparison, CheckResult
from dualign.export.export import ExportFile, ExportResult, suggested_type
from dualign.export.show_modes import modes_summary, verdict
from dualign.export.writer import EXACT


def _files_table(result: ExportResult) -> Table:
    """Build the table of files: size, change by quantization, agreement in the check."""
    table = Table(title=f"{result.model}, written by {result.converter}", title_justify="left")
    for column in ("file", "size", "bits", "change", "prompts", "think", "no_think"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for file in result.files:
        change = "-" if file.error is None else f"{file.error:.2%}"
        cells = [file.file, _megabytes(file.bytes), f"{file.bits_per_weight:.1f}", change]
        table.add_row(*(Text(cell) for cell in (*cells, *_agreements(file.check))))
    return table


def _answers_table(result: ExportResult) -> Table | None:
    """Build the table of answers: transformers', and each file's if it differs."""
    checked = [(file, file.check) for file in result.files if file.check is not None]
    if not checked:
        return None
    table = Table(title="greedy answers", title_justify="left")
    for column, narrowest, widest in (
        ("question", 18, 22),
        ("mode", 8, None),
        ("by", 12, None),
        ("answer", 20, None),
    ):
        table.add_column(
            column, min_width=narrowest, max_width=widest, no_wrap=True, overflow="ellipsis"
        )
    for index, first in enumerate(checked[0][1].answers):
        cells: list[tuple[str, ...]] = [
            (first.question, first.mode, "transformers", _line(first.expected))
        ]
        for file, check in checked:
            answer = check.answers[index]
            text = "the same" if answer.agreed == answer.tokens else _line(answer.actual)
            cells.append(("", "", file.type, text))
        for row in cells:
            table.add_row(*(Text(cell) for cell in row), end_section=row is cells[-1])
    return table


def summary(result: ExportResult) -> Group:
    """Return all tables and the notes."""
    parts: list[Table | Text | Group] = [_files_table(result)]
    if (answers := _answers_table(result)) is not None:
        parts.append(answers)
    else:
        parts.append(Text("not checked: the files weren't loaded in llama.cpp"))
    parts += [
        modes_summary(file.both_modes, file.type)
        for file in result.files
        if file.both_modes is not None
    ]
    parts += [Text(f"corrected: {field}") for field in result.fixed_fields]
    return Group(*parts)


def closing(result: ExportResult, out: Path) -> str:
    """Return the verdict on each file, where they are, and what runs them."""
    type = suggested_type({file.type: file.bytes for file in result.files})
    (suggested,) = [file.file for file in result.files if file.type == type]
    names = ", ".join([*(file.file for file in result.files), "Modelfile", "export.json"])
    folder, model = shlex.quote(str(out)), shlex.quote(str(out / suggested))
    return "\n".join(
        [
            *map(_verdict, result.files),
            f"written to {out}: {names}",
            f"next: llama-server -m {model} --jinja",
            f"      cd {folder} && ollama create mine -f Modelfile",
        ]
    )


def _verdict(file: ExportFile) -> str:
    if file.type not in EXACT:
        return verdict(file.type, file.both_modes)
    if file.check is None:
        return f"{file.type}: not loaded in llama.cpp"
    return f"{file.type}: llama.cpp answers as transformers in both modes"


def _agreements(check: CheckResult | None) -> tuple[str, str, str]:
    """Return the cells of prompts, think and no_think."""
    if check is None:
        return "-", "-", "-"
    return (
        f"{check.conversations}/{check.conversations}",
        _agreement(check.answers, "think"),
        _agreement(check.answers, "no_think"),
    )


def _agreement(answers: Iterable[AnswerComparison], mode: Mode) -> str:
    """Return leading tokens that agree / all tokens, over the questions in a mode."""
    of_mode = [answer for answer in answers if answer.mode == mode]
    agreed = sum(answer.agreed for answer in of_mode)
    return f"{agreed}/{sum(answer.tokens for answer in of_mode)}"


def _line(text: str) -> str:
    """Join lines, so that rows of the table stay aligned."""
    return " ".join(text.split())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
