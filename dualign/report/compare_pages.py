"""A comparison of two models, for the terminal and as a page in HTML."""

from collections.abc import Iterator
from pathlib import Path

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from dualign.errors import EvaluationError
from dualign.evaluation.scores import change_text, percent, score_text
from dualign.report.answers import Listed, browse
from dualign.report.blocks import Block, Bullets, Paragraph, Report, Section, Table
from dualign.report.compare import (
    OUTCOMES,
    TURNED_RIGHT,
    TURNED_WRONG,
    ComparedProblem,
    Comparison,
)
from dualign.report.render import render_html
from dualign.report.samples import mode_answer, plain, shortened

_SHOWN_CHARACTERS = 400  # of a text in the terminal
_WIDE = 150  # columns of a terminal that have room for the whole table
_LEGEND = (
    "Accuracy in percent, its change in points, on the problems that both answered, with 95 % intervals; "
    "in parentheses if the interval of the change holds 0. p: of the exact paired test, adjusted for the "
    "number of rows (Holm 1979), those of budgets by themselves."
)


def print_comparison(comparison: Comparison, console: Console, *, shown: int) -> None:
    """Print the table, what isn't compared, and up to `shown` problems that turned wrong, and right."""
    console.print(_terminal_table(comparison, short=console.width < _WIDE))
    for note in comparison.notes():
        console.print(Text(note))
    for outcome in (TURNED_WRONG, TURNED_RIGHT):
        turned = [problem for problem in comparison.problems if problem.outcome == outcome]
        for problem in turned[:shown]:
            console.print(_side_by_side(comparison, problem))
        if len(turned) > shown:
            console.print(f"{len(turned) - shown} more {outcome}.")


def _terminal_table(comparison: Comparison, *, short: bool) -> TerminalTable:
    """Return the table; `short` without the accuracies' intervals and the thinking tokens."""
    table = TerminalTable(
        title=Text(_title(comparison)),
        caption=_LEGEND,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD if short else HEAVY_HEAD,
        padding=(0, 0 if short else 1),
    )
    columns = _columns(comparison)
    for place, name in enumerate(columns[:-1] if short else columns):
        head = Text(name.removeprefix("turned ") if short else name)
        if place < 2:
            table.add_column(head, min_width=8)
        else:
            table.add_column(head, justify="right", no_wrap=True)
    for row in _rows(comparison, short=short):
        # Text, not str: rich would read square brackets in a name as markup.
        table.add_row(*map(Text, row[:-1] if short else row))
    return table


def write_comparison(comparison: Comparison, file: Path) -> None:
    """Write the page: the table, and all compared problems with filters.

    Raises:
        EvaluationError: the file can't be written.
    """
    text = render_html(_page(comparison))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise EvaluationError(f"{file}: can't be written ({error.strerror})") from None


def _page(comparison: Comparison) -> Report:
    before, after = comparison.names
    count = sum(len(task.problems) for task in comparison.tasks)
    facts = (
        ("Before", f"{before}, from {comparison.before.folder}"),
        ("After", f"{after}, from {comparison.after.folder}"),
        ("Compared", f"{count:,} problems, each mode counted"),
    )
    columns = _columns(comparison)
    table = Table(columns=columns, rows=tuple(_rows(comparison)), text_columns=2)
    blocks: list[Block] = [Paragraph(text=_LEGEND, quiet=True), table]
    if notes := tuple(comparison.notes()):
        blocks.append(Bullets(items=notes))
    return Report(
        title=_title(comparison),
        facts=facts,
        sections=(
            Section(name="accuracy", title="Accuracy", blocks=tuple(blocks)),
            Section(name="problems", title="Problems", blocks=(browse(_listed(comparison)),)),
        ),
    )


def _title(comparison: Comparison) -> str:
    before, after = comparison.names
    return f"{after} against {before}"


def _columns(comparison: Comparison) -> tuple[str, ...]:
    return (
        "task",
        "mode",
        "n",
        *comparison.names,
        "change",
        "p",
        *OUTCOMES[:2],
        "thinking tokens, %",
    )


def _rows(comparison: Comparison, *, short: bool = False) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each task in each mode, then of all tasks together."""
    digits = 0 if short else 1
    for task in comparison.tasks:
        yield (
            task.task,
            task.mode,
            str(len(task.problems)),
            *(
                percent(score.accuracy) if short else score_text(score)
                for score in (task.before, task.after)
            ),
            change_text(task.change, digits),
            f"{task.p_adjusted:.3f}" if task.p_adjusted >= 0.001 else "<0.001",
            *(str(task.count(outcome)) for outcome in OUTCOMES[:2]),
            change_text(task.think_tokens),
        )
    for mode, change in comparison.means.items():
        tasks = [task for task in comparison.tasks if task.mode == mode]
        if len(tasks) > 1:
            n = str(sum(len(task.problems) for task in tasks))
            turned = (str(sum(task.count(outcome) for task in tasks)) for outcome in OUTCOMES[:2])
            yield (
                f"mean of {len(tasks)} tasks",
                mode,
                n,
                "",
                "",
                change_text(change, digits),
                "",
                *turned,
                "",
            )


def _listed(comparison: Comparison) -> list[Listed]:
    before, after = comparison.names
    return [
        (
            problem.task,
            problem.id,
            problem.outcome,
            [*((before, row) for row in problem.before), *((after, row) for row in problem.after)],
        )
        for problem in comparison.problems
    ]


def _side_by_side(comparison: Comparison, problem: ComparedProblem) -> TerminalTable:
    """Return the first answers of both models, shortened."""
    row = problem.before[0]
    table = TerminalTable(
        title=Text(
            f"\n{problem.outcome}: {problem.task}, {problem.mode}, problem {problem.id}\n"
            f"{shortened(plain(row.get('prompt')), _SHOWN_CHARACTERS)}\n"
            f"Expected: {shortened(plain(row.get('expected')), _SHOWN_CHARACTERS)}"
        ),
        title_justify="left",
        title_style="",
        expand=True,
    )
    cells = []
    for name, answers in zip(comparison.names, (problem.before, problem.after), strict=True):
        answer = mode_answer(answers[0], _SHOWN_CHARACTERS)
        table.add_column(Text(f"{name}: {answer.verdict}"), ratio=1)
        trace = f"(thinking)\n{answer.thinking}\n(answer)\n" if answer.thinking else ""
        cells.append(Text(f"{trace}{answer.answer or '(no answer)'}"))
    table.add_row(*cells)
    return table
