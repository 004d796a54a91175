"""Sources -> one table of tokenised rows, and which of them are trained on, in which order.

    source -> rows drawn by weight -> tokens (refused rows counted)
           -> validation held out -> repeats -> shuffled

Each source is an Arrow table on disk; only indices and lengths are held in memory.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from dualign.data.accounting import UNKNOWN_MODE, Group, account, tally_rows
from dualign.data.draws import Indices, drawn_rows, generator, held_out, repeated
from dualign.data.encoding import ExampleEncoder, PairEncoder
from dualign.data.settings import DataConfig, SourceConfig
from dualign.data.source_files import data_fingerprint, local_files
from dualign.data.sources import load_source, source_label
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
    tables, left_out, sources = [], [], []
    for number, source in enumerate(data.sources):
        rows = load_source(source, base=base)
        drawn = drawn_rows(len(rows), source.weight, generator(seed, "weight", number))
        if not len(drawn):
            raise DataError(
                f"source {source.path!r}: weight {source.weight} leaves none of {len(rows)} rows"
            )
        encoder = kind(source=source, data=data, tokenizer=tokenizer, template=template, rows=drawn)
        tables.append(_encoded(rows, encoder, num_proc))
        left_out.append(len(rows) - len(drawn))
        sources.append(_data_entry(source, rows, base))
    return _drawn(tables, left_out, tuple(sources), data, seed)


def _encoded(
    rows: datasets.Dataset,
    encoder: ExampleEncoder | PairEncoder,
    num_proc: int | None,
) -> datasets.Dataset:
    chosen = rows if len(encoder.rows) == len(rows) else rows.select(encoder.rows)
    with no_cache():
        return chosen.map(
            encoder,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=encoder.features,
            num_proc=num_proc if num_proc and num_proc > 1 else None,
            desc=source_label(encoder.source),
        )


def _drawn(
    tables: list[datasets.Dataset],
    left_out: list[int],
    sources: tuple[Mapping[str, Any], ...],
    data: DataConfig,
    seed: int,
) -> Mixed:
    table = datasets.concatenate_datasets(tables)
    about = _about(table)
    names = [source_label(source) for source in data.sources]
    owner = np.repeat(np.arange(len(tables)), [len(one) for one in tables])
    kept = np.flatnonzero(about["code"] == "")
    _require_rows(kept, about["code"])
    validation = kept[held_out(len(kept), data.validation_rows, generator(seed, "validation"))]
    remaining = np.setdiff1d(kept, validation, assume_unique=True)
    train = np.concatenate(
        [
            repeated(
                remaining[owner[remaining] == number],
                source.weight,
                generator(seed, "repeats", number),
            )
            for number, source in enumerate(data.sources)
        ]
    )
    keys = [(str(mode), names[which]) for mode, which in zip(about["mode"], owner, strict=True)]
    groups = tuple(
        sorted({keys[row] for row in kept}, key=lambda key: (names.index(key[1]), key[0]))
    )
    places = {key: place for place, key in enumerate(groups)}
    return Mixed(
        table=table,
        group=np.array([places.get(key, -1) for key in keys]),
        tokens=about["tokens"],
        train=generator(seed, "order").permutation(train),
        validation=validation,
        groups=groups,
        rows=account(tally_rows(keys, about, train, validation, _unseen(data, left_out))),
        sources=sources,
    )


def _unseen(data: DataConfig, left_out: list[int]) -> dict[Group, int]:
    return {
        (UNKNOWN_MODE if source.mode == "row" else source.mode, source_label(source)): count
        for source, count in zip(data.sources, left_out, strict=True)
        if count
    }


def _require_rows(kept: Indices, codes: Any) -> None:
    if not len(kept):
        reasons, counts = np.unique(codes, return_counts=True)
        listed = ", ".join(
            f"{reason}: {count}" for reason, count in zip(reasons, counts, strict=True)
        )
        raise DataError(f"no row is left to train on. Left out: {listed}.")


def _about(table: datasets.Dataset) -> dict[str, Any]:
    columns = table.select_columns(["code", "repairs", "mode", "tokens", "supervised"]).with_format(
        "numpy"
    )[:]
    return {name: np.asarray(column) for name, column in columns.items()}


def _data_entry(
    source: SourceConfig, rows: datasets.Dataset, base: Path | None
) -> Mapping[str, Any]:
    if local_files(source.path, base):
        return data_fingerprint(source.path, len(rows), base)
    digest = sha256(rows._fingerprint.encode()).hexdigest()
    return {"source": source.path, "sha256": digest, "rows": len(rows)}


def _check_labels(labels: Sequence[str]) -> None:
    """Two sources of one name would be one line in every table."""
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:
        raise DataError(
            f"sources with the same name: {', '.join(twice)}. Give each of them a label of its own."
        )


@contextmanager
def no_cache() -> Iterator[None]:
    """`datasets` recognises a cached result by the function's name, not by its code or by what it
    calls, so a new version of dualign would get the old one's tokens. Without caching, tables go to
    a temporary folder.
    """
    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_caching()
