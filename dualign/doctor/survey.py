"""All rows of a stage's data, once, on the path that training takes, with every check on the way.

Faults are collected instead of raised. What stays in memory of a row is its length and a hash.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.mix.row_table import count_rows, group_rows, summarize_rows
from dualign.data.mix.selection import select_rows
from dualign.data.policies import stops
from dualign.data.rows.sources import source_label
from dualign.data.seeds import Indices, indices_of
from dualign.data.text.template import ChatTemplate
from dualign.data.tokens.encoding import EncodedRow, ExampleEncoder, PairEncoder
from dualign.doctor.balance import Sides, balance_faults, side_faults
from dualign.doctor.findings import Fault, Findings
from dualign.doctor.gathering import Gathered, gather
from dualign.doctor.rendering import Turns, rendering_faults, turns_of
from dualign.doctor.row_log import RowLog
from dualign.doctor.rows import conversation_faults, foreign_markers
from dualign.doctor.tokens import Sample, example_faults, sample_of, served_faults, unknown_id
from dualign.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 512
SAMPLES = 8
"""Rows of each source and mode whose prompts are rendered again by the saved tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is examined: the data of a stage, with the tokenizer and the template that train on it."""

    data: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate
    pairs: bool = False
    """rows are preference pairs"""
    seed: int = 42
    prefix: str = ""
    """stands before the names of the sources"""
    base: Path | None = None
    """where relative paths start"""
    trained: bool = True
    """whether a stage trains on these rows alone"""


@dataclass(kw_only=True, slots=True)
class Survey:
    """The state of one pass over the rows."""

    subject: Subject
    findings: Findings
    foreign: re.Pattern[str]
    turns: Turns
    unknown: int | None
    log: RowLog = field(default_factory=RowLog)
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    sides: Sides = field(default_factory=Sides)


def survey(subject: Subject, findings: Findings) -> Mapping[str, Any]:
    """Check every row that training would read; the account of the rows, as in run.json."""
    gathered = gather(
        subject.data,
        findings,
        pairs=subject.pairs,
        seed=subject.seed,
        base=subject.base,
        prefix=subject.prefix,
    )
    made = Survey(
        subject=replace(subject, data=gathered.data),
        findings=findings,
        foreign=foreign_markers(subject.tokenizer),
        turns=turns_of(subject.template),
        unknown=unknown_id(subject.tokenizer),
    )
    read = zip(gathered.data.sources, gathered.screened.sampled, strict=True)
    for number, (source, one) in enumerate(read):
        encoder = _encoder(made.subject, source, one.rows)
        for start, batch in enumerate(one.table.iter(batch_size=BATCH)):
            places = one.rows[start * BATCH : (start + 1) * BATCH].tolist()
            for row in encoder.encode(batch, places):
                _check_row(made, source, number, row)
    return _conclude(made, gathered)


def _encoder(subject: Subject, source: SourceConfig, rows: Indices) -> ExampleEncoder | PairEncoder:
    """Training's own, but that it leaves out the rows that would stop it."""
    dropping = {code: "drop" if does == "error" else does for code, does in source.on_fault.items()}
    too_long = "drop" if subject.data.too_long == "error" else subject.data.too_long
    encoder = PairEncoder if subject.pairs else ExampleEncoder
    return encoder(
        source=replace(source, on_fault=dropping),
        data=replace(subject.data, conflicts="drop", too_long=too_long),
        tokenizer=subject.tokenizer,
        template=subject.template,
        rows=rows,
    )


def _check_row(made: Survey, source: SourceConfig, number: int, row: EncodedRow) -> None:
    faults = list(_content_faults(made, row))
    if row.fault:
        faults.append(_as_fault(row.fault, source, made.subject.data))
    else:
        examples = [one for side in row.examples for one in side]
        faults += [fault for one in examples for fault in example_faults(one, made.unknown)]
        _sample(made, source, row)
    if row.entry["repairs"]:
        faults.append(Fault("repaired", str(row.entry["repairs"])))
    if "chosen_ids" in row.entry:
        made.sides.add(len(row.entry["chosen_ids"]), len(row.entry["rejected_ids"]))
    made.log.add(number, row)
    # What both sides of a pair share is told once.
    made.findings.extend(dict.fromkeys(faults), source=_name(made, source), row=row.row)


def _content_faults(made: Survey, row: EncodedRow) -> Iterator[Fault]:
    supervise = "last" if made.subject.pairs else made.subject.data.supervise
    for conversation in row.conversations:
        yield from conversation_faults(conversation, made.foreign)
    for rendered in row.rendered:
        yield from rendering_faults(rendered, made.turns, supervise=supervise)


def _as_fault(error: RowError, source: SourceConfig, data: DataConfig) -> Fault:
    """As bad as what training does about it."""
    default = data.too_long if error.code == "too_long" else data.conflicts
    stopping = stops(error.code, source.on_fault, default=default)
    return Fault(error.code, error.what, "error" if stopping else "warning")


def _sample(made: Survey, source: SourceConfig, row: EncodedRow) -> None:
    """Remember the first rows of each source and mode as they are."""
    samples = made.samples.setdefault((row.entry["mode"], source_label(source)), [])
    if len(samples) < SAMPLES and (sample := sample_of(row)):
        samples.append(sample)


def _conclude(made: Survey, gathered: Gathered) -> Mapping[str, Any]:
    """What only all rows together can show, and their account."""
    subject, findings = made.subject, made.findings
    name = _whole(subject)
    _tell_repeats(made)
    rows = _account(made, gathered)
    masked = subject.data.supervise != "all"
    if masked:
        faults = balance_faults(rows.get("by", ()), trained=subject.trained)
        findings.extend(faults, source=name)
    if subject.pairs:
        findings.extend(side_faults(made.sides), source=name)
    samples = [one for group in made.samples.values() for one in group] if masked else []
    for sample, fault in served_faults(samples, subject.tokenizer):
        place = sample.conversation
        findings.add(fault, source=subject.prefix + place.source, row=place.row)
    return rows


def _account(made: Survey, gathered: Gathered) -> Mapping[str, Any]:
    """As training settles the mixture; where it can't, every kept row counts once."""
    rows, data = made.log.row_table(), gathered.data
    if not len(rows):
        return {}
    kept = indices_of(rows.code.equals(""))
    try:
        selection = select_rows(rows, gathered.drawn, gathered.screened, data, made.subject.seed)
    except DataError as error:
        code = "mixture_impossible" if len(kept) else "nothing_left"
        made.findings.add(Fault(code, str(error)), source=_whole(made.subject))
        labels = [source_label(source) for source in data.sources]
        group, groups = group_rows(rows, labels)
        return summarize_rows(count_rows(rows, group, groups, kept, kept[:0], {}))
    return selection.rows


def _tell_repeats(made: Survey) -> None:
    """Every row that gives the text of an earlier one."""
    log, labels = made.log, [_name(made, source) for source in made.subject.data.sources]
    for place, earlier in made.log.repeats().items():
        found = f"the same text as row {log.row[earlier]} of {labels[log.owner[earlier]]}"
        name = labels[log.owner[place]]
        made.findings.add(Fault("duplicate_row", found), source=name, row=log.row[place])


def _name(made: Survey, source: SourceConfig) -> str:
    return made.subject.prefix + source_label(source)


def _whole(subject: Subject) -> str:
    """What is told of all sources together is told of the stage."""
    return subject.prefix.rstrip("/") or "all sources"
