"""Sources -> one table of tokenised rows, and which of them are trained on, in which order.

    source -> rows drawn by weight or number -> screened -> tokens (refused rows counted)
           -> validation held out -> repeats, amounts, shares -> shuffled

Each source is an Arrow table on disk; only indices and lengths are held in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from dualign.data.caching import map_afresh
from dualign.data.config import DataConfig
from dualign.data.conversation import Group
from dualign.data.mix.row_table import Tokenised, numbers, owners, words
from dualign.data.mix.screening import Screened, screen
from dualign.data.mix.selection import check_labels, settle
from dualign.data.rows.loading import Drawn, draw_source
from dualign.data.rows.shape_check import check_shapes
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices
from dualign.data.text.template import ChatTemplate
from dualign.data.tokens.encoding import ExampleEncoder, PairEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """All tokenised rows of all sources, and which of them are trained on, in order.

    `group` has an entry for each row of `table`, -1 for one that was left out.
    """

    table: datasets.Dataset
    group: Indices
    train: Indices
    validation: Indices
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]


def mix(
    kind: type[ExampleEncoder] | type[PairEncoder],
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    seed: int,
    base: Path | None,
    num_proc: int | None,
) -> Mixed:
    """The tokenised rows of all sources, what is trained on and held out, and the account."""
    check_labels([source_label(source) for source in data.sources])
    pairs = kind is PairEncoder
    drawn = [
        draw_source(source, seed=seed, number=number, base=base)
        for number, source in enumerate(data.sources)
    ]
    for one, source in zip(drawn, data.sources, strict=True):
        check_shapes(one.table, one.rows, source, data, pairs=pairs)
    screened = screen(drawn, data, pairs=pairs, num_proc=num_proc)
    tables = []
    for one, source in zip(screened.drawn, data.sources, strict=True):
        encoder = kind(
            source=source, data=data, tokenizer=tokenizer, template=template, rows=one.rows
        )
        tables.append(_encoded(one.table, encoder, num_proc))
    return _mixed(tables, drawn, screened, data, seed)


def _encoded(
    rows: datasets.Dataset,
    encoder: ExampleEncoder | PairEncoder,
    num_proc: int | None,
) -> datasets.Dataset:
    return map_afresh(
        rows,
        encoder,
        with_indices=True,
        remove_columns=rows.column_names,
        features=encoder.features,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        desc=source_label(encoder.source),
    )


def _mixed(
    tables: list[datasets.Dataset],
    drawn: Sequence[Drawn],
    screened: Screened,
    data: DataConfig,
    seed: int,
) -> Mixed:
    table = datasets.concatenate_datasets(tables)
    tokenised = _tokenised(table, [len(one) for one in tables])
    settled = settle(tokenised, drawn, screened, data, seed)
    return Mixed(
        table=table,
        group=settled.group,
        train=settled.train,
        validation=settled.validation,
        groups=settled.groups,
        rows=settled.rows,
        sources=tuple(
            {"source": source.path, "sha256": one.sha256, "rows": one.total}
            for source, one in zip(data.sources, drawn, strict=True)
        ),
    )


def _tokenised(table: datasets.Dataset, sizes: Sequence[int]) -> Tokenised:
    """What is remembered of the rows of a table that joins sources of so many rows."""

    def column(name: str) -> Any:
        return table.select_columns([name]).with_format("arrow")[:][name]

    return Tokenised(
        owner=owners(sizes),
        mode=words(column("mode")),
        code=words(column("code")),
        repairs=words(column("repairs")),
        tokens=numbers(column("tokens")),
        supervised=numbers(column("supervised")),
    )
