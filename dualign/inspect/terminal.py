"""Show rows as the model gets them: supervised and special tokens, and the shares of sources and
modes.

Supervised tokens are green, the others dim; special tokens are reversed. In a pipe, brackets stand
around what is supervised. A newline is shown as an arrow and a break. The same as a page: `html.py`.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualign.data.conversation import Group
from dualign.data.prepare import Prepared, SFTData
from dualign.data.rows.reading import reading_notes
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.data.verdicts import VERDICTS
from dualign.report.blocks import TokenSpan
from dualign.terminal import wide_console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_T = TypeVar("_T")
_SUPERVISED, _GIVEN, _SPECIAL = "green", "dim", "reverse"
NEWLINE = "\u21b5\n"
_MARKS = ("\u27e6", "\u27e7")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One document of a packed row, one side of a pair, or a rated answer. `side` is empty, chosen or
    rejected, desirable or undesirable.
    """

    group: int
    ids: list[int]
    labels: list[int]
    side: str = ""


def show(
    prepared: Prepared,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    samples: int = 1,
    console: Console | None = None,
) -> None:
    """Print the tables of rows, tokens and lengths, then `samples` documents of each mode and
    source.
    """
    console = console or wide_console()
    show_counts(prepared.rows, console)
    for note in reading_notes(prepared.sources):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if prepared.rows["removed"]:
        console.print(_removed_table(prepared.rows))
    _show_lengths(lengths_of(prepared), console)
    marks = None
    if console.color_system is None:  # a pipe or a file
        marks = _MARKS
        console.print(f"{marks[0]}...{marks[1]} marks what is supervised", markup=False)
    for document in samples_of(prepared, samples):
        console.rule(title_of(document, prepared.groups))
        text = colored(document.ids, document.labels, tokenizer, marks=marks)
        console.print(text, soft_wrap=marks is not None)


def samples_of(prepared: Prepared, count: int) -> list[Document]:
    """The first `count` documents of each mode and source in the order of training; of pairs, both
    sides, and of rated answers so many good ones and so many bad ones.
    """
    samples: dict[int, list[Document]] = {place: [] for place in range(len(prepared.groups))}
    sides = 1 if isinstance(prepared, SFTData) else 2
    for row in prepared.train:
        for document in _documents_of(row):
            of_side = [known for known in samples[document.group] if known.side == document.side]
            if len(of_side) < count:
                samples[document.group].append(document)
        if all(len(documents) >= count * sides for documents in samples.values()):
            break
    return [document for documents in samples.values() for document in documents]


def lengths_of(prepared: Prepared) -> dict[Group, list[int]]:
    """The tokens of each document that is trained on; of a pair, those of its prompt and both
    answers.
    """
    lengths: dict[Group, list[int]] = {group: [] for group in prepared.groups}
    if not isinstance(prepared, SFTData):
        names = [name for name in prepared.train.column_names if name.endswith("_ids")]
        for row in prepared.train:
            lengths[prepared.groups[row["group"]]].append(sum(len(row[name]) for name in names))
        return lengths
    rows = prepared.train.select_columns(["doc_groups", "seq_lengths"])
    for row in rows:
        for group, length in zip(row["doc_groups"], row["seq_lengths"], strict=True):
            lengths[prepared.groups[group]].append(length)
    return lengths


def _show_lengths(lengths: Mapping[Group, Sequence[int]], console: Console) -> None:
    """Print how many documents have up to 2, 4, 8, ... tokens, from the shortest to the longest."""
    powers = {group: list(map(_power, values)) for group, values in lengths.items()}
    every = sorted(set().union(*powers.values()))

    def table(shown: Sequence[int]) -> Table:
        table = _sources_table("tokens of a row, up to")
        for power in shown:
            table.add_column(f"{2**power:,}", justify="right", no_wrap=True)
        for (mode, source), values in powers.items():
            counts = map(values.count, shown)
            table.add_row(source, mode, *(f"{count:,}" if count else "" for count in counts))
        return table

    _print_fitting(table, range(every[0], every[-1] + 1) if every else (), console)


def show_counts(rows: Mapping[str, Any], console: Console) -> None:
    """Print rows and tokens for each source and mode, and in total; then what was dropped and mended.

    Columns that hold nothing are left out.
    """
    total = {"source": "all", "mode": "", **rows}
    entries = [*rows["by"], total]
    numbers = [name for name in _NUMBERS if any(entry.get(name) for entry in entries)]
    _print_fitting(lambda shown: _counts_table(entries, shown), numbers, console)
    if any(entry[name] for entry in entries for name in _REASONS):
        console.print(_reasons_table(entries))


def _print_fitting(
    table: Callable[[Sequence[_T]], Table], columns: Sequence[_T], console: Console
) -> None:
    """Print a table with these columns, in parts one below the other where it is too wide."""
    whole = table(columns)
    if len(columns) > 1 and _width(whole) > console.width:
        middle = (len(columns) + 1) // 2
        for part in (columns[:middle], columns[middle:]):
            _print_fitting(table, part, console)
    else:
        console.print(whole)


def _counts_table(entries: Sequence[Mapping[str, Any]], numbers: Sequence[str]) -> Table:
    table = _sources_table("rows")
    for name in numbers:
        table.add_column(_NUMBERS[name], justify="right", no_wrap=True)
    for entry in entries:
        if entry is entries[-1]:
            table.add_section()
        table.add_row(entry["source"], entry["mode"], *(_figure(name, entry) for name in numbers))
    return table


def _reasons_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each reason, since a column for them would break words on a narrow terminal."""
    names = [name for name in _REASONS if any(entry[name] for entry in entries)]
    table = _sources_table(" and ".join(names))
    for name in ("", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    for entry in entries:
        if entry is entries[-1]:
            table.add_section()
        for name in names:
            for reason, count in entry[name].items():
                table.add_row(entry["source"], entry["mode"], name, reason, f"{count:,}")
    return table


def _sources_table(title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("source", overflow="fold", min_width=_SOURCE_WIDTH)
    table.add_column("mode", no_wrap=True)
    return table


def _width(table: Table) -> int:
    """Columns of the terminal that the table needs for its numbers and a part of the sources."""
    unbounded = Console(width=1000, file=io.StringIO())
    return unbounded.measure(table).minimum


def _removed_table(rows: Mapping[str, Any]) -> Table:
    """Samples of the rows that were screened out: where a row was, why it was removed, and the row
    or problem that it repeats.
    """
    table = Table(title="some of the rows that were left out")
    for name in ("source", "row", "code", "same as", "text"):
        table.add_column(name, overflow="fold")
    for row in rows["removed"]:
        same = ", ".join(f"{key} {value}" for key, value in row["same_as"].items())
        table.add_row(row["source"], str(row["row"]), row["code"], same, row["text"])
    return table


_REASONS = ("dropped", "repaired")
_SOURCE_WIDTH = 12  # less would break short names
_NUMBERS = {
    "in": "in",
    "kept": "kept",
    "validation": "held out",
    "repeats": "repeats",
    "desirable": "good",
    "undesirable": "bad",
    "tokens": "tokens",
    "share": "share",
    "supervised_tokens": "supervised",
    "mean_tokens": "mean",
    "max_tokens": "max",
}


def _documents_of(row: Mapping[str, Any]) -> list[Document]:
    """The documents of a packed row, both sides of a pair, or a rated answer."""
    if "prompt_ids" in row:
        hidden = [IGNORE_INDEX] * len(row["prompt_ids"])
        if "answer_ids" in row:
            sides = {VERDICTS[not row["desirable"]]: row["answer_ids"]}
        else:
            sides = {name: row[f"{name}_ids"] for name in ("chosen", "rejected")}
        return [
            Document(
                group=row["group"], ids=row["prompt_ids"] + ids, labels=hidden + ids, side=side
            )
            for side, ids in sides.items()
        ]
    documents, start = [], 0
    for group, length in zip(row["doc_groups"], row["seq_lengths"], strict=True):
        stop = start + length
        ids, labels = row["input_ids"][start:stop], row["labels"][start:stop]
        documents.append(Document(group=group, ids=ids, labels=labels))
        start = stop
    return documents


def runs_of(
    ids: Sequence[int], labels: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[TokenSpan]:
    """The tokens as text, in runs that are shown alike.

    A run is decoded as a whole, since a character may be spread over several tokens; special tokens
    are runs of their own.
    """
    special = frozenset(tokenizer.added_tokens_decoder)
    kinds = [
        (label != IGNORE_INDEX, token in special) for token, label in zip(ids, labels, strict=True)
    ]
    run: list[int] = []
    for at, token in enumerate(ids):
        run.append(token)
        if at + 1 == len(ids) or kinds[at + 1] != kinds[at] or kinds[at][1]:
            text = tokenizer.decode(run, skip_special_tokens=False)
            supervised, is_special = kinds[at]
            yield TokenSpan(text=str(text), supervised=supervised, special=is_special)
            run = []


def colored(
    ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    marks: tuple[str, str] | None = None,
) -> Text:
    """The tokens as text, styled by whether they are supervised and special.

    Args:
        marks: what stands before and after supervised text where styles can't be seen.
    """
    text, before, after = Text(), *(marks or ("", ""))
    supervised = False
    for run in runs_of(ids, labels, tokenizer):
        if run.supervised != supervised:
            text.append(before if run.supervised else after)
            supervised = run.supervised
        style = _SUPERVISED if run.supervised else _GIVEN
        style = f"{style} {_SPECIAL}" if run.special else style
        text.append(run.text.replace("\n", NEWLINE), style=style)
    return text.append(after) if supervised else text


def title_of(document: Document, groups: Sequence[Group]) -> str:
    """`source (mode)`, and for a pair which side, for a rated answer its verdict."""
    mode, source = groups[document.group]
    return f"{source} ({mode}){' ' if document.side else ''}{document.side}"


def _power(length: int) -> int:
    """The smallest power of two that holds the length."""
    return max(length - 1, 0).bit_length()


def _figure(name: str, entry: Mapping[str, Any]) -> str:
    if name not in entry:
        return ""
    return f"{entry[name]:.1%}" if name == "share" else f"{entry[name]:,.0f}"
