"""The rows of a stage as one HTML page: samples with their tokens colored, lengths, the account."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import MODES, Group
from dualign.data.prepare import Prepared, RatedData, SFTData
from dualign.data.rows.reading import reading_notes
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.data.verdicts import VERDICTS
from dualign.inspect.terminal import NEWLINE, Document, lengths_of, runs_of, samples_of, title_of
from dualign.report.blocks import (
    Block,
    Gallery,
    Paragraph,
    Report,
    Section,
    Table,
    TokenSpan,
    TokenView,
)
from dualign.report.plots import row_lengths_plot
from dualign.report.render import render_html

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 4000
"""Tokens shown of a document; of a longer one, so many from its head and its end together."""
_COLUMNS = ("in", "kept", "validation", "repeats", "tokens", "supervised_tokens")
_LEGEND = (
    "Tinted text is supervised: the model has to produce it. Gray text is given to it. Framed are "
    "special tokens; an arrow is a newline."
)


def write_page(
    path: Path,
    prepared: Prepared,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    samples: int = 2,
) -> None:
    """Write the page, with `samples` documents of each mode and source."""
    page = inspect_page(prepared, tokenizer, title=title, facts=facts, samples=samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_html(page), encoding="utf-8")


def inspect_page(
    prepared: Prepared,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    samples: int = 2,
) -> Report:
    """The page as blocks: the account of the rows, their lengths, and samples of each source."""
    all_facts = [*facts, *_packing(prepared)]
    account: list[Block] = [_account(prepared.rows)]
    account += [Paragraph(text=f"{note}.", quiet=True) for note in reading_notes(prepared.sources)]
    if prepared.rows["removed"]:
        account.append(_removed(prepared.rows))
    sections = [
        Section(name="rows", title="Rows and tokens", blocks=tuple(account)),
        Section(name="lengths", title="Lengths", blocks=(_lengths(lengths_of(prepared)),)),
        *_samples(samples_of(prepared, samples), prepared.groups, tokenizer),
    ]
    return Report(title=title, facts=tuple(all_facts), sections=tuple(sections))


def _packing(prepared: Prepared) -> list[tuple[str, str]]:
    rows = [("examples", f"{prepared.rows['examples']:,}")]
    if isinstance(prepared, SFTData):
        rows += [("packed rows", f"{len(prepared.train):,}"), ("filled", f"{prepared.fill:.1%}")]
    if isinstance(prepared, RatedData):
        rows += [(name, f"{prepared.rows[name]:,}") for name in VERDICTS]
    return rows


def _account(rows: Mapping[str, Any]) -> Table:
    names = ("source", "mode", "in", "kept", "held out", "repeats", "tokens", "supervised")
    lines = [_line(entry["source"], entry["mode"], entry) for entry in rows["by"]]
    return Table(
        columns=(*names, "dropped"),
        rows=(*lines, _line("all", "", rows)),
        text_columns=2,
        text_last=True,
    )


def _line(source: str, mode: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in entry["dropped"].items())
    return source, mode, *(f"{entry[name]:,}" for name in _COLUMNS), reasons


def _removed(rows: Mapping[str, Any]) -> Table:
    """Some of the rows that were screened out, each with what it repeats."""
    lines = [
        (
            row["source"],
            str(row["row"]),
            row["code"],
            ", ".join(f"{key} {value}" for key, value in row["same_as"].items()),
            row["text"],
        )
        for row in rows["removed"]
    ]
    return Table(
        columns=("source", "row", "code", "same as", "text"),
        rows=tuple(lines),
        text_columns=5,
        text_last=True,
        caption="Some of the rows that were left out",
    )


def _lengths(lengths: Mapping[Group, Sequence[int]]) -> Gallery:
    """One picture for each source, both modes in it."""
    sources = list(dict.fromkeys(source for _, source in lengths))
    pictures = []
    for number, source in enumerate(sources):
        by_mode: dict[str, Sequence[int]] = {
            mode: lengths[mode, source] for mode in MODES if lengths.get((mode, source))
        }
        if by_mode:
            pictures.append(row_lengths_plot(f"lengths-{number}", source, by_mode))
    return Gallery(pictures=tuple(pictures))


def _samples(
    documents: Sequence[Document], groups: Sequence[Group], tokenizer: "PreTrainedTokenizerBase"
) -> list[Section]:
    sources = list(dict.fromkeys(source for _, source in groups))
    sections = []
    for number, source in enumerate(sources):
        of_source = [document for document in documents if groups[document.group][1] == source]
        blocks: list[Block] = [Paragraph(text=_LEGEND, quiet=True)] if number == 0 else []
        blocks += [_tokens(document, groups, tokenizer) for document in of_source]
        sections.append(Section(name=f"source-{number}", title=source, blocks=tuple(blocks)))
    return sections


def _tokens(
    document: Document, groups: Sequence[Group], tokenizer: "PreTrainedTokenizerBase"
) -> TokenView:
    supervised = sum(label != IGNORE_INDEX for label in document.labels)
    total = len(document.ids)
    return TokenView(
        title=title_of(document, groups),
        spans=tuple(_visible(run) for run in _shown_runs(document, tokenizer)),
        note=f"{total:,} tokens, {supervised:,} of them supervised",
    )


def _shown_runs(document: Document, tokenizer: "PreTrainedTokenizerBase") -> list[TokenSpan]:
    ids, labels = document.ids, document.labels
    over = len(ids) - MOST_TOKENS
    if over <= 0:
        return list(runs_of(ids, labels, tokenizer))
    head, tail = MOST_TOKENS * 3 // 4, MOST_TOKENS // 4
    left_out = TokenSpan(
        text=f"\n[{over:,} tokens are left out here]\n", supervised=False, special=False
    )
    return [
        *runs_of(ids[:head], labels[:head], tokenizer),
        left_out,
        *runs_of(ids[-tail:], labels[-tail:], tokenizer),
    ]


def _visible(run: TokenSpan) -> TokenSpan:
    return TokenSpan(
        text=run.text.replace("\n", NEWLINE), supervised=run.supervised, special=run.special
    )
