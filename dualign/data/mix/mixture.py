"""Sources -> one table of tokenized rows, and which of them are trained on, in which order.

    source -> rows sampled by weight or number -> screened -> tokens (refused rows counted)
           -> validation held out -> repeats, amounts, shares -> shuffled

Each source is an Arrow table on disk; only indices and lengths are held in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from dualign.data.config import DataConfig
from dualign.data.conversation import Group, RowType
from dualign.data.mix.row_table import CategoryColumn, RowTable
from dualign.data.mix.screening import screen
from dualign.data.mix.selection import check_labels, select_rows
from dualign.data.mix.switching import PromptSettings, check_switch
from dualign.data.request import DataRequest
from dualign.data.rows.cutting import cutter_for
from dualign.data.rows.loading import sample_rows
from dualign.data.rows.reading import read_source
from dualign.data.rows.shape_check import check_shapes
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices
from dualign.data.shards import Mapped, TableJob, write_tables
from dualign.data.tokens.encoders import ENCODERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """All tokenized rows of all sources, and which of them are trained on, in order.

    `group` has an entry for each row of `table`, -1 for one that was left out. `rows` is ROWS of
    run.json, `sources` its `data`.
    """

    table: datasets.Dataset
    group: Indices
    train: Indices
    validation: Indices
    groups: tuple[Group, ...]
    rows: Mapping[str, Any]
    sources: tuple[Mapping[str, Any], ...]


def mix(request: DataRequest, row_type: RowType) -> Mixture:
    """Read, screen and tokenize all sources, and select the rows to train on and to hold out."""
    data, pairs = request.data, row_type == "pair"
    check_labels([source_label(source) for source in data.sources])
    cutter = cutter_for(request) if row_type == "conversation" else None
    sampled = [
        sample_rows(
            source,
            seed=request.seed,
            number=number,
            base=request.base,
            cutter=cutter,
            processes=data.num_proc,
            first=request.first,
        )
        for number, source in enumerate(data.sources)
    ]
    readings = [
        read_source(source, rows.table, pairs=pairs, supervise=data.supervise)
        for source, rows in zip(data.sources, sampled, strict=True)
    ]
    data = replace(data, sources=tuple(reading.source for reading in readings))
    for rows, source in zip(sampled, data.sources, strict=True):
        check_shapes(rows.table, rows.rows, source, data, pairs=pairs)
    screened = screen(sampled, replace(request, data=data), row_type=row_type)
    jobs = []
    for rows, source in zip(screened.sampled, data.sources, strict=True):
        encoder = ENCODERS[row_type](
            source=source,
            data=data,
            tokenizer=request.tokenizer,
            template=request.template,
            rows=rows.rows,
            parsed=rows.parsed,
            structs=rows.structs,
        )
        jobs.append(
            TableJob(
                count=len(rows.table),
                make=Mapped(rows=rows.stored, function=encoder),
                features=encoder.features,
                title=source_label(source),
            )
        )
    tables = write_tables(
        jobs, processes=data.num_proc, doing="tokenizing", share=request.share, last=True
    )
    table = datasets.concatenate_datasets(tables)
    row_table = _row_table(table, [len(part) for part in tables])
    selection = select_rows(row_table, sampled, screened, data, request.seed)
    if not request.any_modes:
        check_switch(_settings(table, row_table, selection.group, data), request.template)
    return Mixture(
        table=table,
        group=selection.group,
        train=selection.train,
        validation=selection.validation,
        groups=selection.groups,
        rows=selection.rows,
        sources=tuple(
            {"source": reading.source.path, "sha256": rows.sha256, "rows": rows.total}
            | reading.record(rows.total)
            for reading, rows in zip(readings, sampled, strict=True)
        ),
    )


def _settings(
    table: datasets.Dataset, rows: RowTable, group: Indices, data: DataConfig
) -> PromptSettings:
    """Return how the rows that are used are asked."""
    settings = PromptSettings()
    numbers = table.select_columns(["row", "setting"]).with_format("numpy")[:]
    keys = np.stack([numbers["setting"], rows.mode.codes], axis=1)[group >= 0]
    used = np.flatnonzero(group >= 0)
    for index in used[np.unique(keys, axis=0, return_index=True)[1]].tolist():
        source = source_label(data.sources[rows.source_index[index]])
        mode = rows.mode.categories[rows.mode.codes[index]]
        place = f"{source}, row {numbers['row'][index]}"
        settings.add(mode, int(numbers["setting"][index]), place)
    return settings


def _row_table(table: datasets.Dataset, sizes: Sequence[int]) -> RowTable:
    """Return the columns that selection needs of a table that joins sources of `sizes` rows."""

    def column(name: str) -> Any:
        return table.select_columns([name]).with_format("arrow")[:][name]

    return RowTable(
        source_index=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        mode=CategoryColumn.from_arrow(column("mode")),
        code=CategoryColumn.from_arrow(column("code")),
        repairs=CategoryColumn.from_arrow(column("repairs")),
        tokens=np.asarray(column("tokens").to_numpy(), dtype=np.int32),
        supervised=np.asarray(column("supervised").to_numpy(), dtype=np.int32),
    )
