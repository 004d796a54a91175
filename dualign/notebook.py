"""What a notebook shows: tables, and a place that is redrawn, such as a bar's (`terminal.py`).

IPython draws them, which is there in every notebook; widgets (ipywidgets) may not be. A notebook that
is saved keeps the last state of a bar and nothing of those before.
"""

import sys
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def in_notebook() -> bool:
    """Return whether this process is a kernel of Jupyter or Colab. IPython in a terminal is none."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str = "",
    text_columns: int = 1,
) -> str:
    """Return a table as HTML; the first columns hold text, the others figures. None is empty."""
    head = "".join(_cell("th", name, i < text_columns) for i, name in enumerate(columns))
    body = "".join(
        "<tr>"
        + "".join(_cell("td", text, i < text_columns) for i, text in enumerate(row))
        + "</tr>"
        for row in rows
    )
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(tag: str, content: Any, is_text: bool) -> str:
    text = "" if content is None else escape(str(content))
    return f'<{tag} style="text-align: {"left" if is_text else "right"}">{text}</{tag}>'


def html_bar(done: float, total: float | None, text: str) -> str:
    """Return a bar with a text behind it; one without a total moves to and fro."""
    ends = f' value="{done:g}" max="{total:g}"' if total else ""
    return f"<div><progress{ends}></progress> {escape(text)}</div>"


class Output:
    """A place below the cell, whose content is replaced each time."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, html: str, text: str) -> None:
        """Show `html`; `text` is for what can't show it."""
        bundle = {"text/html": html, "text/plain": text}
        if self._handle is None:
            display = sys.modules["IPython"].display.display
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
