"""A recipe's data -> the datasets of a trainer: a mixture, packed, or as pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from dualign.data.cache import Built, Metadata, Tables, kept
from dualign.data.config import DataConfig
from dualign.data.conversation import Group, RowType
from dualign.data.mix.mixture import Mixture, mix
from dualign.data.request import DataRequest, without_stream
from dualign.data.seeds import Indices, rng
from dualign.data.shards import TableJob, write_tables
from dualign.data.tokens.packing import Pieces, fill, pack
from dualign.data.verdicts import count_verdicts, one_sided_verdicts
from dualign.errors import DataError
from dualign.notebook import html_table

__all__ = [
    "DataRequest",
    "PairData",
    "Prepared",
    "RatedData",
    "SFTData",
    "prepare",
    "prepare_pairs",
    "prepare_rated",
    "prepare_sft",
]

_BATCH = 1 << 16
_PAIR = ("prompt_ids", "chosen_ids", "rejected_ids")
_RATED = ("prompt_ids", "answer_ids", "desirable")
_IDS = datasets.List(datasets.Value("int32"))
_PACKED_FEATURES = datasets.Features(
    {"input_ids": _IDS, "labels": _IDS, "seq_lengths": _IDS, "doc_groups": _IDS}
)


def _rows_table(rows: Mapping[str, Any]) -> str:
    """Return the table that a notebook shows of ROWS: a row for each source and mode, and one for all."""
    names = ("in", "kept", "tokens", "supervised_tokens")
    entries = [*rows.get("by", ()), {"source": "all", "mode": "", **rows}]
    cells = []
    for entry in entries:
        numbers = [f"{entry[name]:,}" if name in entry else "" for name in names]
        dropped = ", ".join(f"{reason} {n:,}" for reason, n in entry.get("dropped", {}).items())
        cells.append((entry["source"], entry["mode"], *numbers, dropped))
    columns = ("source", "mode", "rows", "kept", "tokens", "supervised", "dropped")
    return html_table(columns, cells, text_columns=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTData:
    """Packed rows: input_ids, labels, seq_lengths, doc_groups (for each document an index in
    `groups`).

    `groups` are (mode, source); `rows` is ROWS of run.json, `sources` its `data`; `fill` is the
    share of max_tokens that the training rows use.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]
    fill: float

    def _repr_html_(self) -> str:
        return _rows_table(self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairData:
    """Tokenized pairs: prompt_ids, chosen_ids, rejected_ids, group (an index in `groups`). The
    other fields are those of SFTData.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]

    def _repr_html_(self) -> str:
        return _rows_table(self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class RatedData:
    """Tokenized answers with a verdict: prompt_ids, answer_ids, desirable, group (an index in `groups`).

    The other fields are those of SFTData; `rows` and its parts also count the `desirable` and
    `undesirable` rows that are trained on.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]

    def _repr_html_(self) -> str:
        return _rows_table(self.rows)


Prepared = SFTData | PairData | RatedData


def prepare(request: DataRequest, row_type: RowType) -> Prepared:
    """Return the rows of a training stage, by their type."""
    if row_type == "conversation":
        return prepare_sft(request)
    return prepare_pairs(request) if row_type == "pair" else prepare_rated(request)


def prepare_sft(request: DataRequest) -> SFTData:
    """Return packed training and validation rows. Their order depends on the seed alone. Of streams
    they are the first ones, to be looked at: `open_stream` has all.

    Raises:
        DataError: a source that can't be read, an inconsistent row (unless conflicts: drop), no row
        left. TemplateError: a row whose supervised text can't be proven under this template (unless
        conflicts: drop).
    """
    request = without_stream(request)
    data = request.data

    def build(request: DataRequest) -> Built:
        mixture = mix(request, "conversation")
        random = rng(request.seed, "rows")
        tables = {"train": _packed(mixture, mixture.train, data, random, "rows")}
        if len(mixture.validation):
            random = rng(request.seed, "validation rows")
            title = "validation rows"
            tables["validation"] = _packed(mixture, mixture.validation, data, random, title)
        room = len(tables["train"]) * data.max_tokens
        return tables, _metadata(mixture) | {"fill": mixture.rows["tokens"] / room}

    tables, metadata = kept("sft", request, build)
    return SFTData(fill=metadata["fill"], **_fields(tables, metadata))


def prepare_pairs(request: DataRequest) -> PairData:
    """Return tokenized training and validation pairs. Packing and `supervise` don't apply; raises
    as `prepare_sft`.
    """
    request = without_stream(request)
    request = replace(request, data=replace(request.data, packing="none"))

    def build(request: DataRequest) -> Built:
        mixture = mix(request, "pair")
        tables = {"train": _answers(mixture, mixture.train, _PAIR)}
        if len(mixture.validation):
            tables["validation"] = _answers(mixture, mixture.validation, _PAIR)
        return tables, _metadata(mixture)

    tables, metadata = kept("pairs", request, build)
    return PairData(**_fields(tables, metadata))


def prepare_rated(request: DataRequest) -> RatedData:
    """Return tokenized answers with their verdicts for training and validation. Packing and `supervise`
    don't apply.

    Raises:
        DataError: as `prepare_sft`; all answers that are trained on have one verdict.
    """
    request = without_stream(request)
    request = replace(request, data=replace(request.data, packing="none"))

    def build(request: DataRequest) -> Built:
        mixture = mix(request, "rated")
        tables = {"train": _answers(mixture, mixture.train, _RATED)}
        if len(mixture.validation):
            tables["validation"] = _answers(mixture, mixture.validation, _RATED)
        metadata = _metadata(mixture)
        verdicts = zip(tables["train"]["group"], tables["train"]["desirable"], strict=True)
        return tables, metadata | {"rows": count_verdicts(metadata, verdicts)}

    tables, metadata = kept("rated", request, build)
    if one_sided := one_sided_verdicts(metadata["rows"]):
        raise DataError(one_sided)
    return RatedData(**_fields(tables, metadata))


def _metadata(mixture: Mixture) -> dict[str, Any]:
    return {"groups": mixture.groups, "rows": mixture.rows, "sources": mixture.sources}


def _fields(tables: Tables, metadata: Metadata) -> dict[str, Any]:
    return {
        "train": tables["train"],
        "validation": tables.get("validation"),
        "groups": tuple((mode, source) for mode, source in metadata["groups"]),
        "rows": metadata["rows"],
        "sources": tuple(metadata["sources"]),
    }


def _packed(
    mixture: Mixture, rows: Indices, data: DataConfig, random: np.random.Generator, title: str
) -> datasets.Dataset:
    """Return the packed rows of rows of the mixture."""
    documents = _documents(mixture, rows)
    pieces = pack(
        documents.stops - documents.starts,
        max_tokens=data.max_tokens,
        strategy=data.packing,
        random=random,
    )
    table = mixture.table.select_columns(["input_ids", "labels"]).with_format("arrow")
    filler = _Filler(table=table, group=mixture.group, documents=documents, pieces=pieces)
    job = TableJob(
        count=len(pieces.offsets) - 1,
        make=filler,
        features=_PACKED_FEATURES,
        title=title,
        batch_rows=128,
    )
    return write_tables([job], processes=data.num_proc, doing="packing")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Documents:
    """The documents that are packed: tokens `starts`..`stops` of a row of the table. A row is more
    than one document where the template rewrites history.
    """

    rows: Indices
    starts: Indices
    stops: Indices


def _documents(mixture: Mixture, rows: Indices) -> _Documents:
    parts = mixture.table.select_columns(["parts"]).with_format("arrow")[:]["parts"]
    column = parts.combine_chunks()
    offsets = column.offsets.to_numpy()
    ends = np.cumsum(column.values.to_numpy(), dtype=np.int64)
    batches = [
        _documents_of(rows[start : start + _BATCH], offsets, ends)
        for start in range(0, len(rows), _BATCH)
    ]
    columns = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return _Documents(**dict(zip(("rows", "starts", "stops"), columns, strict=True)))


def _documents_of(rows: Indices, offsets: Indices, ends: Indices) -> tuple[Indices, ...]:
    """Return rows, starts and stops of documents.

    Row i has the parts `offsets[i]`..`offsets[i + 1]`; part j ends at token `ends[j]`, counted over
    all rows. Rows 0 and 1 of one and two parts: offsets 0 1 3, ends 5 8 12 -> starts 0 0 3, stops
    5 3 7.
    """
    counts = offsets[rows + 1] - offsets[rows]
    first = np.cumsum(counts) - counts
    parts = np.arange(counts.sum()) + np.repeat(offsets[rows] - first, counts)
    before = np.where(parts > 0, ends[parts - 1], 0)
    # Lengths count from the row's own first token.
    base = np.repeat(before[first], counts)
    starts, stops = before - base, ends[parts] - base
    return np.repeat(rows, counts), starts.astype(np.int32), stops.astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class _Filler:
    """Consecutive numbers of packed rows -> packed rows, reading the documents of a batch of rows
    at once.
    """

    table: datasets.Dataset
    group: Indices
    documents: _Documents
    pieces: Pieces

    def __call__(self, numbers: range) -> pa.Table:
        offsets = self.pieces.offsets[numbers.start : numbers.stop + 1]
        pieces = slice(offsets[0], offsets[-1])
        documents = self.pieces.document[pieces]
        rows = self.documents.rows[documents]
        cuts = np.stack([self.pieces.start[pieces], self.pieces.stop[pieces]], axis=1)
        columns = self.table[rows]
        packed = fill(
            np.diff(offsets),
            cuts + self.documents.starts[documents][:, None],
            columns["input_ids"],
            columns["labels"],
            self.group[rows],
        )
        return pa.Table.from_arrays(
            [packed.input_ids, packed.labels, packed.seq_lengths, packed.groups],
            schema=_PACKED_FEATURES.arrow_schema,
        )


def _answers(mixture: Mixture, rows: Indices, columns: Sequence[str]) -> datasets.Dataset:
    table = mixture.table.select(rows).select_columns(list(columns))
    return table.add_column("group", mixture.group[rows].tolist())
