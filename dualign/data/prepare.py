"""A recipe's data -> what a trainer is fed with: the mixture, packed, or as pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from dualign.data.cache import About, Tables, cache_key, kept
from dualign.data.caching import map_afresh
from dualign.data.config import DataConfig
from dualign.data.conversation import Group
from dualign.data.mix.mixture import Mixed, mix
from dualign.data.seeds import Indices, generator
from dualign.data.text.template import ChatTemplate
from dualign.data.tokens.encoding import ExampleEncoder, PairEncoder
from dualign.data.tokens.packing import Pieces, fill, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 1 << 16
_IDS = datasets.List(datasets.Value("int32"))
PACKED_FEATURES = datasets.Features(
    {"input_ids": _IDS, "labels": _IDS, "seq_lengths": _IDS, "doc_groups": _IDS}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Packed rows: input_ids, labels, seq_lengths, doc_groups (a place in `groups`, for each
    document).

    `groups` are (mode, source); `rows` is ROWS of run.json, `sources` its `data`; `fill` is the
    share of max_tokens that the training rows use.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]
    fill: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPairs:
    """Tokenised pairs: prompt_ids, chosen_ids, rejected_ids, group (a place in `groups`)."""

    train: datasets.Dataset
    validation: datasets.Dataset | None
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]


def prepare_sft(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    *,
    seed: int,
    template_kwargs: Mapping[str, Any] | None = None,
    base: Path | None = None,
    num_proc: int | None = None,
) -> Prepared:
    """Packed training and validation rows. Their order depends on the seed alone.

    `template_kwargs` go to every render; a row's own come first. Relative paths start at `base`.

    Raises:
        DataError: a source that can't be read, a row that contradicts itself (unless conflicts:
        drop), no row left. TemplateError: a row whose supervised text can't be proven under this
        template (unless conflicts: drop).
    """
    template = _with_kwargs(template, template_kwargs)

    def make() -> tuple[Tables, About]:
        mixed = mix(
            ExampleEncoder, data, tokenizer, template, seed, base, num_proc or data.num_proc
        )
        random = generator(seed, "rows")
        tables = {"train": _packed(mixed, mixed.train, data, random, "packing")}
        if len(mixed.validation):
            random = generator(seed, "validation rows")
            title = "packing validation"
            tables["validation"] = _packed(mixed, mixed.validation, data, random, title)
        room = len(tables["train"]) * data.max_tokens
        return tables, _about(mixed) | {"fill": mixed.rows["tokens"] / room}

    key = cache_key("sft", data, tokenizer, template, seed=seed, base=base)
    tables, about = kept(key, make) if key else make()
    return Prepared(fill=about["fill"], **_read(tables, about))


def prepare_pairs(
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    *,
    seed: int,
    template_kwargs: Mapping[str, Any] | None = None,
    base: Path | None = None,
    num_proc: int | None = None,
) -> PreparedPairs:
    """Tokenised training and validation pairs. Packing and `supervise` don't apply; raises as
    `prepare_sft`.
    """
    template = _with_kwargs(template, template_kwargs)
    data = replace(data, packing="none")

    def make() -> tuple[Tables, About]:
        mixed = mix(PairEncoder, data, tokenizer, template, seed, base, num_proc or data.num_proc)
        tables = {"train": _pairs(mixed, mixed.train)}
        if len(mixed.validation):
            tables["validation"] = _pairs(mixed, mixed.validation)
        return tables, _about(mixed)

    key = cache_key("pairs", data, tokenizer, template, seed=seed, base=base)
    tables, about = kept(key, make) if key else make()
    return PreparedPairs(**_read(tables, about))


def _about(mixed: Mixed) -> dict[str, Any]:
    return {"groups": mixed.groups, "rows": mixed.rows, "sources": mixed.sources}


def _read(tables: Tables, about: About) -> dict[str, Any]:
    return {
        "train": tables["train"],
        "validation": tables.get("validation"),
        "groups": tuple((mode, source) for mode, source in about["groups"]),
        "rows": about["rows"],
        "sources": tuple(about["sources"]),
    }


def _packed(
    mixed: Mixed, documents: Indices, data: DataConfig, random: np.random.Generator, title: str
) -> datasets.Dataset:
    """The packed rows of `documents`."""
    parts = _parts(mixed, documents)
    pieces = pack(
        parts.stops - parts.starts,
        max_tokens=data.max_tokens,
        strategy=data.packing,
        random=random,
    )
    table = mixed.table.select_columns(["input_ids", "labels"]).with_format("arrow")
    filler = _Filler(table=table, group=mixed.group, parts=parts, pieces=pieces)
    return map_afresh(
        datasets.Dataset.from_dict({"number": np.arange(len(pieces.ends) - 1)}),
        filler,
        batch_size=128,
        remove_columns=["number"],
        features=PACKED_FEATURES,
        desc=title,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """The documents that are packed: tokens `starts`..`stops` of a row of the table. A row is more
    than one document where the template rewrites history.
    """

    rows: Indices
    starts: Indices
    stops: Indices


def _parts(mixed: Mixed, documents: Indices) -> _Parts:
    column = mixed.table.select_columns(["parts"]).with_format("arrow")[:]["parts"].combine_chunks()
    begins, ends = column.offsets.to_numpy(), np.cumsum(column.values.to_numpy(), dtype=np.int64)
    made = [
        _parts_of(documents[start : start + _AT_ONCE], begins, ends)
        for start in range(0, len(documents), _AT_ONCE)
    ]
    rows, starts, stops = (np.concatenate(one) for one in zip(*made, strict=True))
    return _Parts(rows=rows, starts=starts, stops=stops)


def _parts_of(documents: Indices, begins: Indices, ends: Indices) -> tuple[Indices, ...]:
    """Rows, starts and stops. Row i has the parts `begins[i]`..`begins[i + 1]`; part j ends with token
    `ends[j]` of all parts.
    """
    counts = begins[documents + 1] - begins[documents]
    first = np.cumsum(counts) - counts
    places = np.arange(counts.sum()) + np.repeat(begins[documents] - first, counts)
    before = np.where(places > 0, ends[places - 1], 0)
    # Lengths count from the row's own first token.
    base = np.repeat(before[first], counts)
    rows = np.repeat(documents, counts)
    return rows, (before - base).astype(np.int32), (ends[places] - base).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class _Filler:
    """Numbers of packed rows, one after the other -> packed rows, reading the documents of a batch of
    rows at once.
    """

    table: datasets.Dataset
    group: Indices
    parts: _Parts
    pieces: Pieces

    def __call__(self, batch: Mapping[str, list[int]]) -> pa.Table:
        numbers = batch["number"]
        ends = self.pieces.ends[numbers[0] : numbers[-1] + 2]
        own = slice(ends[0], ends[-1])
        which = self.pieces.document[own]
        places = self.parts.rows[which]
        within = np.stack([self.pieces.start[own], self.pieces.stop[own]], axis=1)
        read = self.table[places]
        packed = fill(
            np.diff(ends),
            within + self.parts.starts[which][:, None],
            read["input_ids"],
            read["labels"],
            self.group[places],
        )
        return pa.Table.from_arrays(
            [packed.input_ids, packed.labels, packed.seq_lengths, packed.groups],
            schema=PACKED_FEATURES.arrow_schema,
        )


def _pairs(mixed: Mixed, rows: Indices) -> datasets.Dataset:
    table = mixed.table.select(rows).select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    return table.add_column("group", mixed.group[rows].tolist())


def _with_kwargs(template: ChatTemplate, given: Mapping[str, Any] | None) -> ChatTemplate:
    return replace(template, template_kwargs={**template.template_kwargs, **(given or {})})
