"""The rows of all sources as training draws and screens them, with what stops it as findings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.mix.screening import ScreenedRows, screen
from dualign.data.mix.selection import check_labels
from dualign.data.rows.loading import SampledRows, sample_rows
from dualign.data.rows.shape_check import check_shapes
from dualign.data.rows.sources import source_label
from dualign.doctor.findings import Fault, Findings
from dualign.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """The sources that can be read, as `data` without the others; their rows as drawn and screened."""

    data: DataConfig
    drawn: tuple[SampledRows, ...]
    screened: ScreenedRows


def gather(
    data: DataConfig, findings: Findings, *, pairs: bool, seed: int, base: Path | None, prefix: str
) -> Gathered:
    """Read what can be read."""
    drawn: list[SampledRows] = []
    sources: list[SourceConfig] = []
    for number, source in enumerate(data.sources):
        try:
            one = sample_rows(source, seed=seed, number=number, base=base)
        except DataError as error:
            name = prefix + source_label(source)
            findings.add(Fault("source_unreadable", str(error)), source=name)
            continue
        _check_shapes(one, source, data, findings, pairs=pairs, prefix=prefix)
        drawn.append(one)
        sources.append(source)
    readable = replace(data, sources=tuple(sources))
    try:
        check_labels([source_label(source) for source in data.sources])
        screened = screen(drawn, replace(readable, num_proc=1), pairs=pairs)
    except DataError as error:
        findings.add(
            Fault("mixture_impossible", str(error)), source=prefix.rstrip("/") or "all sources"
        )
        screened = ScreenedRows(sampled=tuple(drawn))
    _tell_removed(screened, findings, prefix)
    return Gathered(data=readable, drawn=tuple(drawn), screened=screened)


def _check_shapes(
    one: SampledRows,
    source: SourceConfig,
    data: DataConfig,
    findings: Findings,
    *,
    pairs: bool,
    prefix: str,
) -> None:
    # Rows of no known shape are told one by one, when they are read.
    dropping = replace(source, on_fault={**source.on_fault, "unknown_shape": "drop"})
    try:
        check_shapes(one.table, one.rows, dropping, data, pairs=pairs)
    except DataError as error:
        name = prefix + source_label(source)
        findings.add(Fault("several_shapes", str(error)), source=name)


def _tell_removed(screened: ScreenedRows, findings: Findings, prefix: str) -> None:
    """Rows that the recipe screens out: how many, with one that shows why."""
    for (_, source), codes in screened.removed.items():
        for code, count in codes.items():
            shown = _example(screened.samples, source, code)
            found = f"{code}: {count:,} rows{shown}"
            findings.add(Fault("screened_out", found), source=prefix + source)


def _example(samples: Sequence[object], source: str, code: str) -> str:
    for one in samples:
        assert isinstance(one, dict), "screening says where each sample was"
        if (one["source"], one["code"]) == (source, code):
            same = ", ".join(f"{key} {value}" for key, value in one["same_as"].items())
            return f", such as row {one['row']} (the same as {same})"
    return ""
