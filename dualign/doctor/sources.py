"""Sources as training samples and screens them; what would stop training becomes a finding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import Message, RowType
from dualign.data.mix.screening import ScreenedRows, screen
from dualign.data.mix.selection import check_labels
from dualign.data.request import DataRequest
from dualign.data.rows.cutting import cutter_for
from dualign.data.rows.loading import SampledRows, sample_rows
from dualign.data.rows.parser import RowParser, parts_of
from dualign.data.rows.reading import as_yaml, columns_to_try, read_source, reading_notes
from dualign.data.rows.shape_check import UNKNOWN, check_shapes, shapes_in
from dualign.data.rows.sources import source_label
from dualign.data.rows.text_rules import NO_RULES
from dualign.doctor.findings import Finding, Findings
from dualign.errors import DataError, excerpt

_TRIED = 8
"""Rows of which one has to be read by a mapping to try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadableSources:
    """The sources that can be read, their rows as sampled, and as screened.

    `data` is the stage's, without the other sources.
    """

    data: DataConfig
    sampled: tuple[SampledRows, ...]
    screened: ScreenedRows


def read_sources(
    request: DataRequest, findings: Findings, *, row_type: RowType, prefix: str
) -> ReadableSources:
    """Sample and screen all sources; add a finding for each that can't be read."""
    data, pairs = request.data, row_type == "pair"
    cutter = cutter_for(request) if row_type == "conversation" else None
    sampled: list[SampledRows] = []
    sources: list[SourceConfig] = []
    for number, source in enumerate(data.sources):
        name = prefix + source_label(source)
        try:
            rows = sample_rows(
                source,
                seed=request.seed,
                number=number,
                base=request.base,
                cutter=cutter,
                first=request.first,
            )
        except DataError as error:
            findings.add(Finding("source_unreadable", str(error)), source=name)
            continue
        try:
            reading = read_source(source, rows.table, pairs=pairs, supervise=data.supervise)
        except DataError as error:
            findings.add(Finding("source_unreadable", str(error)), source=name)
            continue
        record = {"source": name, "rows": rows.total, **reading.record(rows.total)}
        notes = (Finding("columns_read", note) for note in reading_notes([record]))
        findings.extend(notes, source=name)
        if request.first is not None:
            message = f"a stream, of which the first {rows.total:,} rows were looked at"
            findings.add(Finding("stream_looked_at", message), source=name)
        source = reading.source
        # Rows of no known shape get a finding each, when they are read.
        each = dict.fromkeys(("unknown_shape", "wrong_stage", "multimodal"), "drop")
        dropping = replace(source, on_fault={**source.on_fault, **each})
        try:
            check_shapes(rows.table, rows.rows, dropping, data, pairs=pairs)
        except DataError as error:
            findings.add(Finding("several_shapes", str(error)), source=name)
        findings.extend(_columns_to_try(source, rows, row_type), source=name)
        sampled.append(rows)
        sources.append(source)
    readable = replace(data, sources=tuple(sources))
    try:
        check_labels([source_label(source) for source in data.sources])
        readable_request = replace(request, data=replace(readable, num_proc=1))
        screened = screen(sampled, readable_request, row_type=row_type)
    except DataError as error:
        stage = prefix.rstrip("/") or "all sources"
        findings.add(Finding("mixture_impossible", str(error)), source=stage)
        screened = ScreenedRows(sampled=tuple(sampled))
    for (_, label), codes in screened.removed.items():
        for code, count in codes.items():
            message = f"{code}: {count:,} rows{_example(screened.samples, label, code)}"
            findings.add(Finding("screened_out", message), source=prefix + label)
    return ReadableSources(data=readable, sampled=tuple(sampled), screened=screened)


def _columns_to_try(
    source: SourceConfig, rows: SampledRows, row_type: RowType
) -> Iterator[Finding]:
    """Yield the mapping to try for a source without a row of a known shape, and what its first row
    would become; none if it makes faulty rows.
    """
    pairs = row_type == "pair"
    columns = {} if source.columns else columns_to_try(rows.table, pairs=pairs)
    if not columns or set(shapes_in(rows.table, pairs=pairs)) != {UNKNOWN}:
        return
    mapped = replace(source, columns=columns)
    parser = RowParser(source=mapped, supervise="assistant", row_type=row_type, rules=NO_RULES)
    for number, row in enumerate(islice(rows.table, _TRIED)):
        try:
            parts = parts_of(parser(row, number))
        except DataError:  # a mapping that makes faulty rows is nothing to try
            continue
        which = f"row {number}" if number else "the first row"
        becomes = "\n".join(f"  {_shown(message)}" for part in parts for message in part)
        message = f"columns: {as_yaml(columns)}\n{which} becomes\n{becomes}"
        yield Finding("columns_to_try", message)
        return


def _shown(message: Message) -> str:
    trace = f"(thinks {excerpt(message.thinking)}) " if message.thinking else ""
    return f"{message.role}: {trace}{excerpt(message.content)}"


def _example(samples: Sequence[object], source: str, code: str) -> str:
    """Format one removed row and what it is the same as."""
    for sample in samples:
        assert isinstance(sample, dict), "screening says where each sample was"
        if (sample["source"], sample["code"]) == (source, code):
            same = ", ".join(f"{key} {value}" for key, value in sample["same_as"].items())
            return f", such as row {sample['row']} (the same as {same})"
    return ""
