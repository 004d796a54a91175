"""What an export made, for the terminal: the files, and the answers next to each other."""

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dualign.data.conversation import Mode
from dualign.export.check import Answer
from dualign.export.export import Export, File


def files_table(made: Export) -> Table:
    """A row for each file: size, how much packing changed, and how the check went."""
    table = Table(title=f"{made.model}, written by {made.converter}", title_justify="left")
    for column in ("file", "size", "bits", "change", "prompts", "think", "no_think"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for one in made.files:
        change = "-" if one.error is None else f"{one.error:.2%}"
        cells = [one.file, _megabytes(one.bytes), f"{one.bits_per_weight:.1f}", change]
        table.add_row(*(Text(cell) for cell in (*cells, *_checked(one))))
    return table


def answers_table(made: Export) -> Table | None:
    """Each question in both modes: transformers' answer, and that of each file where it differs."""
    checked = [(one, one.check) for one in made.files if one.check is not None]
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
        for file, verdict in checked:
            answer = verdict.answers[index]
            text = "the same" if _same(answer) else _line(answer.found)
            cells.append(("", "", file.type, text))
        for row in cells:
            table.add_row(*(Text(cell) for cell in row), end_section=row is cells[-1])
    return table


def summary(made: Export) -> Group:
    """Both tables and the notes."""
    parts: list[Table | Text] = [files_table(made)]
    if (answers := answers_table(made)) is not None:
        parts.append(answers)
    else:
        parts.append(Text("not checked: nothing that runs llama.cpp was loaded"))
    parts += [Text(f"mended: {one}") for one in made.mended]
    return Group(*parts)


def _checked(file: File) -> tuple[str, str, str]:
    verdict = file.check
    if verdict is None:
        return "-", "-", "-"
    return (
        f"{verdict.conversations}/{verdict.conversations}",
        _agreement(verdict.answers, "think"),
        _agreement(verdict.answers, "no_think"),
    )


def _agreement(answers: Iterable[Answer], mode: Mode) -> str:
    """Tokens up to the first that differs, of all, over the questions."""
    ours = [one for one in answers if one.mode == mode]
    return f"{sum(one.agreed for one in ours)}/{sum(one.tokens for one in ours)}"


def _same(answer: Answer) -> bool:
    return answer.agreed == answer.tokens


def _line(text: str) -> str:
    """In one line, so that rows stay beside each other."""
    return " ".join(text.split())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
