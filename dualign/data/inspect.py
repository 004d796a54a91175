"""Shows rows as the model gets them: what is supervised, which tokens are special, how sources and
modes share.

Supervised tokens are green, the others dim; special tokens are reversed. A newline is shown as an
arrow and a break.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualign.data.accounting import Group
from dualign.data.prepare import Prepared, PreparedPairs
from dualign.data.removed import removed_table
from dualign.data.tokens import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUPERVISED, _GIVEN, _SPECIAL = "green", "dim", "reverse"


def show(
    prepared: Prepared | PreparedPairs,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    samples: int = 1,
    console: Console | None = None,
) -> None:
    """Print the table of rows and tokens, then `samples` documents of each mode and source."""
    console = console or Console()
    console.print(rows_table(prepared.rows))
    if prepared.rows["removed"]:
        console.print(removed_table(prepared.rows))
    shown: dict[int, int] = {}
    for row in prepared.train:
        for group, ids, labels in documents_of(row):
            if shown.get(group, 0) < samples:
                shown[group] = shown.get(group, 0) + 1
                console.rule(_title(prepared.groups[group]))
                console.print(coloured(ids, labels, tokenizer))
        if len(shown) == len(prepared.groups) and min(shown.values()) >= samples:
            return


def rows_table(rows: Mapping[str, Any]) -> Table:
    """Rows and tokens for each source and mode, and in total, with the reasons of dropped rows."""
    table = Table(title="rows")
    table.add_column("source", overflow="fold")
    table.add_column("mode")
    for name in (
        "in",
        "kept",
        "held out",
        "repeats",
        "tokens",
        "share",
        "supervised",
        "mean",
        "max",
    ):
        table.add_column(name, justify="right")
    table.add_column("dropped", overflow="fold")
    table.add_column("repaired", overflow="fold")
    for entry in rows["by"]:
        ends = (f"{entry['mean_tokens']:,.0f}", f"{entry['max_tokens']:,}")
        figures = _figures(entry, rows["tokens"])
        table.add_row(entry["source"], entry["mode"], *figures, *ends, *_reasons(entry))
    table.add_section()
    table.add_row("all", "", *_figures(rows, rows["tokens"]), "", "", *_reasons(rows))
    return table


def documents_of(row: Mapping[str, Any]) -> list[tuple[int, list[int], list[int]]]:
    """(group, ids, labels) of each document of a packed row, or of both sides of a pair."""
    if "prompt_ids" in row:
        hidden = [IGNORE_INDEX] * len(row["prompt_ids"])
        sides = (row["chosen_ids"], row["rejected_ids"])
        return [(row["group"], row["prompt_ids"] + ids, hidden + ids) for ids in sides]
    found, start = [], 0
    for group, length in zip(row["doc_groups"], row["seq_lengths"], strict=True):
        stop = start + length
        found.append((group, row["input_ids"][start:stop], row["labels"][start:stop]))
        start = stop
    return found


def coloured(
    ids: Sequence[int], labels: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> Text:
    """The tokens as text, styled by whether they are supervised and special.

    Runs of one style are decoded together: a character may be spread over several tokens.
    """
    special = frozenset(tokenizer.added_tokens_decoder)
    text, run = Text(), []
    styles = [_style(token, label, special) for token, label in zip(ids, labels, strict=True)]
    for at, token in enumerate(ids):
        run.append(token)
        if at + 1 == len(ids) or styles[at + 1] != styles[at] or token in special:
            shown = tokenizer.decode(run, skip_special_tokens=False)
            text.append(shown.replace("\n", "\u21b5\n"), style=styles[at])
            run = []
    return text


def _style(token: int, label: int, special: frozenset[int]) -> str:
    style = _GIVEN if label == IGNORE_INDEX else _SUPERVISED
    return f"{style} {_SPECIAL}" if token in special else style


def _figures(entry: Mapping[str, Any], all_tokens: int) -> list[str]:
    share = f"{entry['tokens'] / all_tokens:.1%}" if all_tokens else "-"
    counts = [entry[name] for name in ("in", "kept", "validation", "repeats", "tokens")]
    return [*(f"{count:,}" for count in counts), share, f"{entry['supervised_tokens']:,}"]


def _reasons(entry: Mapping[str, Any]) -> list[str]:
    counted = (entry["dropped"], entry["repaired"])
    return [", ".join(f"{reason} {count:,}" for reason, count in one.items()) for one in counted]


def _title(group: Group) -> str:
    mode, source = group
    return f"{source} ({mode})"
