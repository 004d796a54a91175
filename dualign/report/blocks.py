"""What a report is made of before it is HTML or Markdown: blocks, all text plain and unescaped."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    quiet: bool = False
    """a note, shown smaller"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table. The first `labels` columns are words, and the last with `notes`; the others numbers.

    `groups` spans columns: (title, width).
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    notes: bool = False
    groups: tuple[tuple[str, int], ...] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One plot, twice: SVG to stand in a page, PNG for a file. `name` is unique in the report."""

    name: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Plots that belong together, side by side where there is room."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model wrote in one mode. `note` says how it went."""

    thinking: str
    answer: str
    correct: bool | None
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SideBySide:
    """One problem and its two answers."""

    title: str
    problem: str
    expected: str
    think: Answer
    no_think: Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """Long text that opens on demand, as it is."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Tokens that are shown alike: their text, whether it is supervised, and whether it is a special token."""

    text: str
    supervised: bool
    special: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A row as the model gets it."""

    title: str
    runs: tuple[Run, ...]
    note: str = ""


Block = Text | Bullets | Grid | Gallery | SideBySide | Folded | Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands under it. `name` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The whole: facts are (name, value) pairs at its head."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
