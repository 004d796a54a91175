"""Show rows as the model gets them: supervised and special tokens, and the shares of sources and
modes.

Supervised tokens are green, the others dim; special tokens are reversed. A newline is shown as an
arrow and a break. The same as a page: `html.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualign.data.conversation import Group
from dualign.data.prepare import PairData, SFTData
from dualign.data.rows.reading import reading_notes
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.report.blocks import TokenSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUPERVISED, _GIVEN, _SPECIAL = "green", "dim", "reverse"
NEWLINE = "\u21b5\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One document of a packed row, or one side of a pair. `side` is empty, chosen or rejected."""

    group: int
    ids: list[int]
    labels: list[int]
    side: str = ""


def show(
    prepared: SFTData | PairData,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    samples: int = 1,
    console: Console | None = None,
) -> None:
    """Print the tables of rows, tokens and lengths, then `samples` documents of each mode and
    source.
    """
    console = console or Console()
    console.print(rows_table(prepared.rows))
    for note in reading_notes(prepared.sources):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if prepared.rows["removed"]:
        console.print(_removed_table(prepared.rows))
    console.print(_lengths_table(lengths_of(prepared)))
    for document in samples_of(prepared, samples):
        console.rule(title_of(document, prepared.groups))
        console.print(colored(document.ids, document.labels, tokenizer))


def samples_of(prepared: SFTData | PairData, count: int) -> list[Document]:
    """The first `count` documents of each mode and source in the order of training; of pairs, both
    sides.
    """
    samples: dict[int, list[Document]] = {place: [] for place in range(len(prepared.groups))}
    for row in prepared.train:
        sides = 2 if "prompt_ids" in row else 1
        for document in _documents_of(row):
            if len(samples[document.group]) < count * sides:
                samples[document.group].append(document)
        if all(len(documents) >= count * sides for documents in samples.values()):
            break
    return [document for documents in samples.values() for document in documents]


def lengths_of(prepared: SFTData | PairData) -> dict[Group, list[int]]:
    """The tokens of each document that is trained on; of a pair, those of its prompt and both
    answers.
    """
    lengths: dict[Group, list[int]] = {group: [] for group in prepared.groups}
    if isinstance(prepared, PairData):
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        for row in prepared.train:
            lengths[prepared.groups[row["group"]]].append(sum(len(row[name]) for name in names))
        return lengths
    rows = prepared.train.select_columns(["doc_groups", "seq_lengths"])
    for row in rows:
        for group, length in zip(row["doc_groups"], row["seq_lengths"], strict=True):
            lengths[prepared.groups[group]].append(length)
    return lengths


def _lengths_table(lengths: Mapping[Group, Sequence[int]]) -> Table:
    """Histogram of document lengths: up to 2, 4, 8, ... tokens, from the shortest to the longest."""
    powers = sorted({_power(length) for values in lengths.values() for length in values})
    table = Table(title="tokens of a row, up to", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("source", overflow="fold")
    table.add_column("mode")
    shown = range(powers[0], powers[-1] + 1) if powers else range(0)
    for power in shown:
        table.add_column(f"{2**power:,}", justify="right")
    for (mode, source), values in lengths.items():
        counts = [sum(_power(length) == power for length in values) for power in shown]
        table.add_row(source, mode, *(f"{count:,}" if count else "" for count in counts))
    return table


def rows_table(rows: Mapping[str, Any]) -> Table:
    """Rows and tokens for each source and mode, and in total. Columns that hold nothing are left
    out: a terminal is narrow.
    """
    total = {"source": "all", "mode": "", **rows}
    entries = [*rows["by"], total]
    table = Table(title="rows", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("source", overflow="fold")
    table.add_column("mode", no_wrap=True)
    numbers = [name for name in _NUMBERS if any(entry.get(name) for entry in entries)]
    for name in numbers:
        table.add_column(_NUMBERS[name], justify="right", no_wrap=True)
    reasons = [name for name in ("dropped", "repaired") if rows[name]]
    for name in reasons:
        table.add_column(name, overflow="fold")
    for entry in entries:
        if entry is total:
            table.add_section()
        figures = [_figure(name, entry) for name in numbers]
        counts = [_reasons(entry[name]) for name in reasons]
        table.add_row(entry["source"], entry["mode"], *figures, *counts)
    return table


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


_NUMBERS = {
    "in": "in",
    "kept": "kept",
    "validation": "held out",
    "repeats": "repeats",
    "tokens": "tokens",
    "share": "share",
    "supervised_tokens": "supervised",
    "mean_tokens": "mean",
    "max_tokens": "max",
}


def _documents_of(row: Mapping[str, Any]) -> list[Document]:
    """The documents of a packed row, or both sides of a pair."""
    if "prompt_ids" in row:
        hidden = [IGNORE_INDEX] * len(row["prompt_ids"])
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
    ids: Sequence[int], labels: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> Text:
    """The tokens as text, styled by whether they are supervised and special."""
    text = Text()
    for run in runs_of(ids, labels, tokenizer):
        style = _SUPERVISED if run.supervised else _GIVEN
        style = f"{style} {_SPECIAL}" if run.special else style
        text.append(run.text.replace("\n", NEWLINE), style=style)
    return text


def title_of(document: Document, groups: Sequence[Group]) -> str:
    """`source (mode)`, and for a pair which side."""
    mode, source = groups[document.group]
    return f"{source} ({mode}){' ' if document.side else ''}{document.side}"


def _power(length: int) -> int:
    """The smallest power of two that holds the length."""
    return max(length - 1, 0).bit_length()


def _figure(name: str, entry: Mapping[str, Any]) -> str:
    if name not in entry:
        return ""
    return f"{entry[name]:.1%}" if name == "share" else f"{entry[name]:,.0f}"


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
