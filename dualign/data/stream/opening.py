"""A recipe's data -> a stream: `open_stream`.

sources -> their parts -> rows of this process, from a place on -> tokens -> waiting by mode
        -> drawn by shares -> blocks of `shuffle_buffer` rows, shuffled and packed -> trainer
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import datasets
import numpy as np

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import MODES, PLAIN_TEXT, Group
from dualign.data.mix.decontamination import TaskIndex, index_tasks
from dualign.data.mix.selection import check_labels
from dualign.data.request import LOOKED_AT, DataRequest
from dualign.data.rows.cutting import Cutter, cutter_for
from dualign.data.rows.loading import first_rows
from dualign.data.rows.reading import SourceReading, read_source
from dualign.data.rows.shape_check import check_shapes
from dualign.data.rows.source_files import combined_sha256, fingerprint_files
from dualign.data.rows.sources import source_label
from dualign.data.seeds import rng
from dualign.data.stream.account import Account
from dualign.data.stream.blocks import pack_rows
from dualign.data.stream.maker import BlockMaker
from dualign.data.stream.mixing import mixing_for
from dualign.data.stream.parts import Part, parts_of
from dualign.data.stream.reader import Rank, Reader
from dualign.data.stream.rows import ChunkEncoder, StreamRow
from dualign.data.stream.stream import RowStream, StreamData
from dualign.data.tokens.encoders import ENCODERS
from dualign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """A source that is ready to be read."""

    reading: SourceReading
    parts: Sequence[Part]
    encoder: ChunkEncoder
    number: int

    @property
    def config(self) -> SourceConfig:
        return self.reading.source

    @property
    def label(self) -> str:
        return self.encoder.label

    def reader(self, seed: int, **keys: Any) -> Reader:
        """Return what reads its rows: all of them as one process, if `keys` say nothing else."""
        return Reader(label=self.label, number=self.number, parts=self.parts, seed=seed, **keys)


def open_stream(request: DataRequest, rank: Rank = Rank()) -> StreamData:  # noqa: B008 - frozen
    """Return the packed rows of one process of a launch. Its rows depend on the seed and on the rank.

    Raises:
        DataError: a source that can't be read, or shares that can't be had; later, while rows are
        read, as `prepare_sft`. TemplateError: as `prepare_sft`.
    """
    data = request.data
    assert data.stream is not None, "expected data that is streamed"
    labels = [source_label(source) for source in data.sources]
    check_labels(labels)
    cutter = cutter_for(request)
    clean = data.decontaminate
    tasks = index_tasks(clean.tasks, clean.ngram) if clean else None
    sources = [
        _source(source, number, request, cutter, tasks)
        for number, source in enumerate(data.sources)
    ]
    trained = [source for source in sources if not source.config.validation]
    mixed = replace(data, sources=tuple(source.config for source in trained))
    groups = _groups(sources)
    account = Account()
    readers, held_out = [], list[StreamRow]()
    for number, source in enumerate(trained):
        source.encoder.number = number
        reader, head = _reader(source, request, rank, account)
        readers.append(reader)
        held_out += head
    names = [source.label for source in trained]
    places = [names[row.source] for row in held_out]
    for source in sources:
        if source.config.validation:
            rows = _first_kept(source, request, source.config.rows, account)[0]
            held_out += rows
            places += [source.label] * len(rows)
    numbers = [groups.index((row.mode, label)) for row, label in zip(held_out, places, strict=True)]
    maker = BlockMaker(
        request=replace(request, data=mixed),
        labels=names,
        readers=readers,
        encoders=[source.encoder for source in trained],
        mixing=mixing_for(mixed, names),
        groups={group: number for number, group in enumerate(groups)},
        # The head is every process's, and counts once.
        account=account if rank.index == 0 else Account(),
        size=data.stream.shuffle_buffer,
    )
    return StreamData(
        train=RowStream(maker=maker),
        validation=_validation(held_out, numbers, data, request.seed),
        groups=groups,
        labels=labels,
        records=[_record(source, request) for source in sources],
    )


def _source(
    source: SourceConfig,
    number: int,
    request: DataRequest,
    cutter: Cutter,
    tasks: TaskIndex | None,
) -> _Source:
    """Look at the first rows of a source, and get ready to read all of it."""
    data, label = request.data, source_label(source)
    sample = first_rows(source, LOOKED_AT, base=request.base, cutter=cutter)
    reading = read_source(source, sample.table, pairs=False, supervise=data.supervise)
    check_shapes(sample.table, sample.rows, reading.source, data, pairs=False)
    parts = parts_of(source, sample.table.column_names, base=request.base, cutter=cutter)
    encoder = ENCODERS["conversation"](
        source=reading.source,
        data=data,
        tokenizer=request.tokenizer,
        template=request.template,
        rows=np.empty(0, dtype=np.int32),
    )
    of_chunks = ChunkEncoder(number=number, label=label, parts=parts, encoder=encoder, tasks=tasks)
    return _Source(reading=reading, parts=parts, encoder=of_chunks, number=number)


def _reader(
    source: _Source, request: DataRequest, rank: Rank, account: Account
) -> tuple[Reader, list[StreamRow]]:
    """Return what reads the rows that this process trains on, and the rows before them."""
    count = int(request.data.validation_rows)
    rows, head = _first_kept(source, request, count, account) if count else ([], (0, 0))
    weight = source.config.weight
    return source.reader(request.seed, rank=rank, weight=weight, head=head), rows


def _first_kept(
    source: _Source, request: DataRequest, count: int | None, account: Account
) -> tuple[list[StreamRow], tuple[int, int]]:
    """Return the first rows of a source that are kept, all of it without a `count`, and the place
    after them. They are counted as held out, and those that can't be used as left out.

    Raises:
        DataError: the source has fewer.
    """
    reader = source.reader(request.seed, shuffles=False)
    kept: list[StreamRow] = []
    place = (0, 0)
    while count is None or len(kept) < count:
        chunk = reader.read()
        if chunk.repeats:
            if count is None or source.config.validation:
                break
            raise DataError(
                f"data.validation_rows is {count}, but only {len(kept)} rows of source {source.label} were "
                "kept: nothing would be left to train on. Ask for fewer."
            )
        for number, row_alone in zip(chunk.numbers, chunk.each(), strict=True):
            if count is not None and len(kept) == count:
                break
            place = (chunk.part, number + 1)
            for row in source.encoder.rows(row_alone, account):
                kept.append(row)
                account.keep((row.mode, source.label), row.repairs).validation += 1
    return kept, place


def _groups(sources: Sequence[_Source]) -> tuple[Group, ...]:
    """Return every mode and source that a row may have."""
    modes = (*MODES, PLAIN_TEXT)
    return tuple((mode, source.label) for source in sources for mode in modes)


def _validation(
    rows: Sequence[StreamRow], groups: Sequence[int], data: DataConfig, seed: int
) -> datasets.Dataset | None:
    if not rows:
        return None
    table, _ = pack_rows(rows, groups, data, rng(seed, "validation rows"))
    return datasets.Dataset(table)


def _record(source: _Source, request: DataRequest) -> Mapping[str, Any]:
    """Return what run.json keeps of a source; a hub dataset is told from others by its revision."""
    config = source.config
    files = fingerprint_files(config.path, request.base)
    name = f"{config.path} {config.name} {config.revision}"
    digest = combined_sha256(files) if files else sha256(name.encode()).hexdigest()
    reading: dict[str, Any] = source.reading.record(config.rows or 0)
    return {"source": config.path, "sha256": digest, **reading}
