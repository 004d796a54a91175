"""A report as one HTML file or as Markdown, by the templates of this folder."""

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dualign.report.blocks import Report

# An underscore within a word, as in no_think, is no emphasis.
_SPECIAL = re.compile(r"[\\`*\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render_html(report: Report) -> str:
    """Return the page: no outside link, pictures inside, all text escaped.

    Its own scripts are the only ones that the page lets run.
    """
    folder = Path(__file__).parent
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in report.scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment(folder, autoescape=True).get_template("report.html.jinja")
    return template.render(report=report, script=script, script_hash=f"sha256-{digest}")


def render_markdown(report: Report, *, picture_folder: str) -> str:
    """Return the Markdown. Pictures are linked at `picture_folder/NAME.png`."""
    templates = environment(Path(__file__).parent)
    return templates.get_template("report.md.jinja").render(report=report, folder=picture_folder)


def environment(folder: Path, *, autoescape: bool = False) -> Environment:
    """Load the templates of a folder, with filters for foreign text in Markdown."""
    templates = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"inline": inline, "row": _row, "fenced": fenced, "kind": _kind}
    return templates


def _kind(block: object) -> str:
    return type(block).__name__


def inline(text: str) -> str:
    """Escape foreign text for one line of Markdown: a sentence, or a table's cell."""
    escaped = _SPECIAL.sub(lambda match: "\\" + match[0], html.escape(text, quote=False))
    return "<br>".join(escaped.splitlines())


def _row(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(inline(cell) for cell in cells)} |"


def fenced(text: str) -> str:
    """Return foreign text as a block of code, whatever back-ticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
