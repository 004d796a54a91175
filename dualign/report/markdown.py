"""A report as Markdown, with its plots as PNG files beside it."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dualign.report.blocks import (
    Answer,
    Block,
    Bullets,
    Folded,
    Gallery,
    Grid,
    Report,
    Section,
    SideBySide,
    Text,
    Tokens,
)

# An underscore within a word, as in no_think, is no emphasis.
SPECIAL = re.compile(r"[\\`*\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render_markdown(report: Report, *, picture_folder: str) -> str:
    """The text. Pictures are looked for at `picture_folder/NAME.png`."""
    facts = "\n".join(f"- **{inline(k)}:** {inline(v)}" for k, v in report.facts)
    sections = "\n\n".join(_section(section, picture_folder) for section in report.sections)
    return f"# {inline(report.title)}\n\n{facts}\n\n{sections}\n"


def inline(text: str) -> str:
    """Foreign text that shows as it is on one line: in a table's cell, in a sentence."""
    escaped = SPECIAL.sub(lambda found: "\\" + found[0], html.escape(text, quote=False))
    return "<br>".join(escaped.splitlines())


def fenced(text: str) -> str:
    """Foreign text as a block of code, whatever back-ticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def row(cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(inline(cell) for cell in cells)} |"


def markdown_environment(folder: Path) -> Environment:
    """Templates of a folder, with the filters inline, row and fenced for foreign text."""
    templates = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"inline": inline, "row": row, "fenced": fenced}
    return templates


def _section(section: Section, folder: str) -> str:
    body = "\n\n".join(_block(block, folder) for block in section.blocks)
    return f"## {inline(section.title)}\n\n{body}"


def _block(block: Block, folder: str) -> str:
    match block:
        case Text():
            return inline(block.text)
        case Bullets():
            return "\n".join(f"- {inline(item)}" for item in block.items)
        case Grid():
            return table(block)
        case Gallery():
            return "\n".join(f"![{inline(p.alt)}]({folder}/{p.name}.png)" for p in block.pictures)
        case SideBySide():
            return _side_by_side(block)
        case Folded():
            title = html.escape(block.title)
            return f"<details><summary>{title}</summary>\n\n{fenced(block.text)}\n\n</details>"
        case Tokens():
            text = "".join(run.text for run in block.runs)
            return f"### {inline(block.title)}\n\n{fenced(text)}"


def table(grid: Grid) -> str:
    """A table, with its caption above it."""
    groups = [title for title, width in grid.groups for _ in range(width)] or [""] * len(
        grid.columns
    )
    names = [f"{g} {name}".strip() for g, name in zip(groups, grid.columns, strict=True)]
    numbers = range(grid.labels, len(names) - grid.notes)
    rules = ["---:" if i in numbers else "---" for i in range(len(names))]
    caption = f"**{inline(grid.caption)}**\n\n" if grid.caption else ""
    return caption + "\n".join([row(names), f"| {' | '.join(rules)} |", *map(row, grid.rows)])


def _side_by_side(pair: SideBySide) -> str:
    answers = Grid(
        columns=(f"think: {_verdict(pair.think)}", f"no_think: {_verdict(pair.no_think)}"),
        rows=((_answer(pair.think), _answer(pair.no_think)),),
        labels=2,
    )
    expected = f"Expected: {inline(pair.expected)}"
    return f"### {inline(pair.title)}\n\n{fenced(pair.problem)}\n\n{expected}\n\n{table(answers)}"


def _verdict(answer: Answer) -> str:
    return {True: "right", False: "wrong", None: "not checked"}[answer.correct]


def _answer(answer: Answer) -> str:
    parts = [f"(thinking)\n{answer.thinking}\n(answer)" if answer.thinking else ""]
    parts += [answer.answer or "(no answer)", f"({answer.note})" if answer.note else ""]
    return "\n".join(part for part in parts if part)
