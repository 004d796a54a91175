"""Sources -> one table of tokenised rows, and which of them are trained on, in which order.

    source -> rows drawn by weight or number -> screened -> tokens (refused rows counted)
           -> validation held out -> repeats, amounts, shares -> shuffled

Each source is an Arrow table on disk; only indices and lengths are held in memory.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from dualign.data.accounting import UNKNOWN_MODE, Group, account, tally_rows
from dualign.data.amounts import Rows, choose
from dualign.data.caching import no_cache
from dualign.data.conversation import MODES
from dualign.data.draws import Indices, generator, held_out
from dualign.data.encoding import ExampleEncoder, PairEncoder
from dualign.data.loading import Drawn, draw_source
from dualign.data.screening import Screened, screen
from dualign.data.settings import DataConfig
from dualign.data.shape_check import check_shapes
from dualign.data.sources import source_label
from dualign.data.template import ChatTemplate
from dualign.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """All tokenised rows of all sources, and which of them are trained on, in order.

    `group`, `tokens` have an entry for each row of `table`; `group` is -1 for a row that was left
    out.
    """

    table: datasets.Dataset
    group: Indices
    tokens: Indices
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
    _check_labels([source_label(source) for source in data.sources])
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
    with no_cache():
        return rows.map(
            encoder,
            batched=True,
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
    about = _about(table)
    labels = [source_label(source) for source in data.sources]
    owner = np.repeat(np.arange(len(tables)), [len(one) for one in tables])
    kept = np.flatnonzero(about["code"] == "")
    unseen = _unseen(data, drawn, screened)
    _require_rows(kept, about["code"], unseen)
    validation = kept[held_out(len(kept), data.validation_rows, generator(seed, "validation"))]
    remaining = np.setdiff1d(kept, validation, assume_unique=True)
    mode = np.array([MODES.index(one) if one in MODES else -1 for one in about["mode"]])
    rows = Rows(owner=owner, mode=mode, tokens=about["tokens"], labels=labels)
    chosen = choose(remaining, rows, data, seed)
    for reason, lost in chosen.left_out.items():
        about["code"][lost] = reason
    _require_rows(chosen.train, about["code"], unseen)
    keys = [(str(mode), labels[which]) for mode, which in zip(about["mode"], owner, strict=True)]
    groups = tuple(
        sorted(
            {keys[row] for row in np.flatnonzero(about["code"] == "")},
            key=lambda key: (labels.index(key[1]), key[0]),
        )
    )
    places = {key: place for place, key in enumerate(groups)}
    rows_of_run = account(tally_rows(keys, about, chosen.train, validation, unseen))
    rows_of_run |= {"tasks": dict(screened.tasks), "removed": list(screened.samples)}
    return Mixed(
        table=table,
        group=np.array([places.get(key, -1) for key in keys]),
        tokens=about["tokens"],
        train=generator(seed, "order").permutation(chosen.train),
        validation=validation,
        groups=groups,
        rows=rows_of_run,
        sources=tuple(
            {"source": source.path, "sha256": one.sha256, "rows": one.total}
            for source, one in zip(data.sources, drawn, strict=True)
        ),
    )


def _unseen(
    data: DataConfig, drawn: Sequence[Drawn], screened: Screened
) -> dict[Group, Counter[str]]:
    """Rows that weren't tokenised: not drawn, by the key that drew; or screened out, by code."""
    unseen: dict[Group, Counter[str]] = {}
    for source, one in zip(data.sources, drawn, strict=True):
        group = (UNKNOWN_MODE if source.mode == "row" else source.mode, source_label(source))
        if count := one.total - len(one.rows):
            unseen[group] = Counter({"weight" if source.rows is None else "rows": count})
    for group, codes in screened.removed.items():
        unseen[group] = unseen.get(group, Counter()) + codes
    return unseen


def _require_rows(kept: Indices, codes: Any, unseen: Mapping[Group, Counter[str]]) -> None:
    if not len(kept):
        lost = Counter(str(code) for code in codes if code)
        for more in unseen.values():
            lost.update(more)
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(lost.items()))
        raise DataError(f"no row is left to train on. Left out: {listed}.")


def _about(table: datasets.Dataset) -> dict[str, Any]:
    columns = table.select_columns(["code", "repairs", "mode", "tokens", "supervised"]).with_format(
        "numpy"
    )[:]
    found = {name: np.asarray(column) for name, column in columns.items()}
    return found | {"code": found["code"].astype(object)}


def _check_labels(labels: Sequence[str]) -> None:
    """Two sources of one name would be one line in every table."""
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:
        raise DataError(
            f"sources with the same name: {', '.join(twice)}. Give each of them a label of its own."
        )
