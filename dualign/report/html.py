"""A report as one HTML file: no script, no outside link, pictures inside, all text escaped."""

from collections.abc import Sequence
from html import escape

from dualign.report.blocks import (
    Answer,
    Block,
    Bullets,
    Folded,
    Gallery,
    Grid,
    Picture,
    Report,
    Section,
    SideBySide,
    Text,
    Tokens,
)
from dualign.report.style import CSS


def render_html(report: Report) -> str:
    """The page."""
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.facts)
    links = "".join(f'<a href="#{escape(s.name)}">{escape(s.title)}</a>' for s in report.sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(report.title)}</h1>\n<dl>{facts}</dl>\n<nav>{links}</nav></header>\n"
        "<main>\n"
        f"{''.join(_section(section) for section in report.sections)}</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    body = "\n".join(_block(block) for block in section.blocks)
    title = f"<h2>{escape(section.title)}</h2>"
    return f'<section id="{escape(section.name)}">\n{title}\n{body}\n</section>\n'


def _block(block: Block) -> str:
    match block:
        case Text():
            return f"<p{' class=quiet' if block.quiet else ''}>{escape(block.text)}</p>"
        case Bullets():
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>"
        case Grid():
            return _grid(block)
        case Gallery():
            return f'<div class="gallery">{"".join(_picture(p) for p in block.pictures)}</div>'
        case SideBySide():
            return _side_by_side(block)
        case Folded():
            title = f"<summary>{escape(block.title)}</summary>"
            return f"<details>{title}<pre>{escape(block.text)}</pre></details>"
        case Tokens():
            return _tokens(block)


def _tokens(row: Tokens) -> str:
    note = f'<p class="quiet">{escape(row.note)}</p>' if row.note else ""
    runs = "".join(
        f'<span class="{"supervised" if run.supervised else "given"}{" special" if run.special else ""}">'
        f"{escape(run.text)}</span>"
        for run in row.runs
    )
    return f'<article><h3>{escape(row.title)}</h3>{note}<pre class="tokens">{runs}</pre></article>'


def _picture(picture: Picture) -> str:
    alt = escape(picture.alt)
    label = f'role="img" aria-label="{alt}"'
    return f"<figure>{picture.svg.replace('<svg', f'<svg {label}', 1)}</figure>"


def _grid(grid: Grid) -> str:
    # Not a caption element: that would scroll away with a wide table.
    caption = f'<p class="caption">{escape(grid.caption)}</p>' if grid.caption else ""
    groups = ""
    if grid.groups:
        cells = "".join(
            f'<th colspan="{width}" class="group">{escape(t)}</th>' for t, width in grid.groups
        )
        groups = f"<tr>{cells}</tr>"
    head = "".join(
        f"<th{_kind(i, grid)}>{escape(name)}</th>" for i, name in enumerate(grid.columns)
    )
    rows = "".join(f"<tr>{_cells(row, grid)}</tr>\n" for row in grid.rows)
    return (
        f'{caption}<div class="wide"><table><thead>{groups}<tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cells(row: Sequence[str], grid: Grid) -> str:
    return "".join(f"<td{_kind(i, grid)}>{escape(cell)}</td>" for i, cell in enumerate(row))


def _kind(column: int, grid: Grid) -> str:
    if grid.notes and column == len(grid.columns) - 1:
        return ' class="word note"'
    return ' class="word"' if column < grid.labels else ""


def _side_by_side(pair: SideBySide) -> str:
    answers = _answer("think", pair.think) + _answer("no_think", pair.no_think)
    return (
        f"<article><h3>{escape(pair.title)}</h3>"
        f'<div class="problem"><pre>{escape(pair.problem)}</pre>'
        f"<p>Expected: <b>{escape(pair.expected)}</b></p></div>"
        f'<div class="modes">{answers}</div></article>'
    )


def _answer(mode: str, answer: Answer) -> str:
    verdict = {True: "right", False: "wrong", None: "not checked"}[answer.correct]
    thinking = f'<pre class="thinking">{escape(answer.thinking)}</pre>' if answer.thinking else ""
    text = escape(answer.answer) if answer.answer else '<span class="quiet">(no answer)</span>'
    return (
        f'<div class="answer {mode}">'
        f'<h4>{mode} <span class="{verdict.split()[0]}">{verdict}</span></h4>'
        f'{thinking}<pre>{text}</pre><p class="quiet">{escape(answer.note)}</p></div>'
    )
