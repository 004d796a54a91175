"""The blocks of a report, before it is HTML or Markdown. All text is plain and unescaped."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """A paragraph; a `quiet` one is a note, shown smaller."""

    text: str
    quiet: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of numbers, with some columns of text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    """the first columns, which hold text"""
    text_last: bool = False
    """the last column holds text too"""
    groups: tuple[tuple[str, int], ...] = ()
    """headings above the columns: (title, number of columns)"""
    caption: str = ""

    @property
    def full_names(self) -> tuple[str, ...]:
        """The columns' names with their groups before them."""
        groups = [title for title, width in self.groups for _ in range(width)]
        groups = groups or [""] * len(self.columns)
        pairs = zip(groups, self.columns, strict=True)
        return tuple(f"{group} {name}".strip() for group, name in pairs)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot: SVG for a page, PNG for a file, each drawn once, when it is asked for."""

    name: str
    """unique in the report"""
    alt: str
    draw: Callable[[str], bytes]
    """draws it as `svg` or `png`"""

    @cached_property
    def svg(self) -> str:
        """The SVG element."""
        return self.draw("svg").decode()

    @cached_property
    def png(self) -> bytes:
        """The file."""
        return self.draw("png")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Plots that belong together, side by side if there is room."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeAnswer:
    """The answer of a model in one mode. `note`: lengths, and faults of its form."""

    thinking: str
    answer: str
    correct: bool | None
    note: str

    @property
    def verdict(self) -> str:
        return {True: "right", False: "wrong", None: "not checked"}[self.correct]


@dataclass(frozen=True, kw_only=True, slots=True)
class SideBySide:
    """A problem and its answers in both modes."""

    title: str
    problem: str
    expected: str
    think: ModeAnswer
    no_think: ModeAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class Details:
    """Long text that opens on demand, as it is."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSpan:
    """Text of adjacent tokens that are shown alike: supervised or not, special or not."""

    text: str
    supervised: bool
    special: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenView:
    """A row as the model gets it, in spans of tokens."""

    title: str
    spans: tuple[TokenSpan, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class AnswerBrowser:
    """Problems with their answers, which a reader of the page filters; at most one on a page.

    `problems` are plain values: `task`, `id`, `prompt`, `expected`, `kind` ("" or what happened to
    it), and `answers`, each with `model`, `mode`, `right`, `thinking`, `answer`, `note`, `flags`.
    """

    problems: tuple[Mapping[str, Any], ...]
    note: str = ""
    """what is left out"""

    @property
    def json(self) -> str:
        """The problems as JSON that can't end the element it stands in."""
        text = json.dumps(self.problems, ensure_ascii=False, separators=(",", ":"))
        for character in "<>&\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
        return text

    @property
    def filters(self) -> tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]:
        """The filters with a choice to make: (name, label, ((value, label), ...))."""
        answers = [answer for problem in self.problems for answer in problem["answers"]]
        flags = dict.fromkeys(flag for answer in answers for flag in answer["flags"])
        outcomes = (("wrong", "wrong"), ("right", "right"), ("mixed", "some right, some wrong"))
        listed = (
            ("task", "Task", _choices(problem["task"] for problem in self.problems)),
            ("kind", "Change", _choices(problem["kind"] for problem in self.problems)),
            ("model", "Model", _choices(answer["model"] for answer in answers)),
            ("mode", "Mode", _choices(answer["mode"] for answer in answers)),
            ("outcome", "Answers", (*outcomes, *((flag, flag) for flag in flags))),
        )
        return tuple(entry for entry in listed if len(entry[2]) > 1)


def _choices(values: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return tuple((value, value) for value in dict.fromkeys(values) if value)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressBar:
    """How much of a stage's work is done. `text` says it in words."""

    text: str
    done: int
    total: int


Block = (
    Paragraph
    | ProgressBar
    | Bullets
    | Table
    | Gallery
    | SideBySide
    | Details
    | TokenView
    | AnswerBrowser
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and its blocks. `name` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refresh:
    """What a page needs to load itself again: how often, and when it was written."""

    seconds: int
    written: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The whole; `facts` are (name, value) pairs at its head."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    pages: tuple[tuple[str, str], ...] = ()
    """(title, file) of pages beside this one"""

    refresh: Refresh | None = None
    """of a page that is written again while a run goes on"""

    @property
    def scripts(self) -> tuple[str, ...]:
        """The files of this folder that the page runs."""
        blocks = (block for section in self.sections for block in section.blocks)
        answers = any(isinstance(block, AnswerBrowser) for block in blocks)
        return (*(["answers.js"] if answers else []), *(["live.js"] if self.refresh else []))
