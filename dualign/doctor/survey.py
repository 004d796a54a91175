"""All rows of a stage's data, once, on the path that training takes, with every check on the way.

Faults are collected instead of raised. What stays in memory of a row is its length and a hash.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dualign.data.accounting import UNKNOWN_MODE, account, tally_rows
from dualign.data.conversation import Conversation, PreferencePair
from dualign.data.faults import RowError
from dualign.data.policies import stops
from dualign.data.settings import DataConfig, SourceConfig, Supervise
from dualign.data.settling import settle
from dualign.data.sources import source_label, to_conversation, to_pair
from dualign.data.spans import Rendered
from dualign.data.template import ChatTemplate
from dualign.data.text_rules import TextRules, text_rules
from dualign.data.tokens import IGNORE_INDEX, Example, encode_batch
from dualign.doctor.balance import Sides, balance_faults, side_faults
from dualign.doctor.findings import Fault, Findings
from dualign.doctor.gathering import Gathered, gather
from dualign.doctor.rendering import Turns, rendering_faults, turns_of
from dualign.doctor.row_log import RowLog
from dualign.doctor.rows import conversation_faults, foreign_markers
from dualign.doctor.tokens import Sample, example_faults, sample_of, served_faults, unknown_id
from dualign.errors import DataError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["sft", "preference"]
BATCH = 512
SAMPLES = 8
"""Rows of each source and mode whose prompts are rendered again by the saved tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is examined: the data of a stage, with the tokenizer and the template that train on it."""

    kind: Kind
    data: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate
    seed: int = 42
    prefix: str = ""
    """stands before the names of the sources"""
    base: Path | None = None
    """where relative paths start"""
    trained: bool = True
    """whether a stage trains on these rows alone"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A row on its way: what it became, or the fault that stopped it. A pair has two sides."""

    index: int
    conversations: tuple[Conversation, ...] = ()
    rendered: tuple[Rendered, ...] = ()
    fault: RowError | None = None


@dataclass(kw_only=True, slots=True)
class Survey:
    """The state of one pass over the rows."""

    subject: Subject
    findings: Findings
    foreign: re.Pattern[str]
    rules: TextRules
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
        pairs=subject.kind == "preference",
        seed=subject.seed,
        base=subject.base,
        prefix=subject.prefix,
    )
    made = Survey(
        subject=replace(subject, data=gathered.data),
        findings=findings,
        foreign=foreign_markers(subject.tokenizer),
        rules=text_rules(subject.tokenizer, subject.template),
        turns=turns_of(subject.template),
        unknown=unknown_id(subject.tokenizer),
    )
    read = zip(gathered.data.sources, gathered.screened.drawn, strict=True)
    for number, (source, one) in enumerate(read):
        for start, batch in enumerate(one.table.iter(batch_size=BATCH)):
            rows = one.rows[start * BATCH : (start + 1) * BATCH].tolist()
            _survey_batch(made, source, number, batch, rows)
    return _conclude(made, gathered)


def _survey_batch(
    made: Survey,
    source: SourceConfig,
    number: int,
    batch: Mapping[str, list[Any]],
    places: Sequence[int],
) -> None:
    raw = ({key: values[at] for key, values in batch.items()} for at in range(len(places)))
    rows = [_rendered(made, source, row, place) for row, place in zip(raw, places, strict=True)]
    data = made.subject.data
    cuts = data.packing == "wrapped" or data.too_long.startswith("cut")
    limit = None if cuts else data.max_tokens
    texts = [one for row in rows for one in row.rendered]
    examples = iter(encode_batch(texts, made.subject.tokenizer, max_tokens=limit))
    for row in rows:
        encoded = [next(examples) for _ in row.rendered]
        _check_row(made, source, number, row, encoded)


def _rendered(made: Survey, source: SourceConfig, raw: Mapping[str, Any], index: int) -> _Row:
    try:
        conversations = _conversations(made, source, raw, index)
    except RowError as fault:
        return _Row(index=index, fault=fault)
    template, masking = made.subject.template, _masking(made.subject)
    try:
        texts = tuple(
            text for one in conversations for text in template.render_rows(one, supervise=masking)
        )
    except TemplateError as error:
        label, mode = source_label(source), conversations[0].mode
        refused = RowError("template", str(error), source=label, row=index, mode=mode)
        return _Row(index=index, conversations=conversations, fault=refused)
    return _Row(index=index, conversations=conversations, rendered=texts)


def _conversations(
    made: Survey, source: SourceConfig, raw: Mapping[str, Any], index: int
) -> tuple[Conversation, ...]:
    if made.subject.kind == "sft":
        supervise = made.subject.data.supervise
        return (
            to_conversation(raw, source=source, index=index, supervise=supervise, rules=made.rules),
        )
    return sides_of(to_pair(raw, source=source, index=index, rules=made.rules))


def sides_of(pair: PreferencePair) -> tuple[Conversation, ...]:
    """Chosen and rejected, each as a conversation."""
    return tuple(
        Conversation(
            messages=(*pair.prompt, *answer),
            mode=pair.mode,
            source=pair.source,
            row=pair.row,
            tools=pair.tools,
            template_kwargs=pair.template_kwargs,
            repairs=pair.repairs,
        )
        for answer in (pair.chosen, pair.rejected)
    )


def _masking(subject: Subject) -> Supervise:
    return "last" if subject.kind == "preference" else subject.data.supervise


def _check_row(
    made: Survey,
    source: SourceConfig,
    number: int,
    row: _Row,
    encoded: Sequence[Example | RowError],
) -> None:
    faults = list(_content_faults(made, row))
    refused = [row.fault] if row.fault else [one for one in encoded if isinstance(one, RowError)]
    for error in refused[:1]:
        faults.append(_as_fault(error, source, made.subject.data))
    kept = [one for one in encoded if isinstance(one, Example)]
    if not refused:
        faults += [fault for one in kept for fault in example_faults(one, made.unknown)]
        _sample(made, source, row, kept)
    _log(made, source, number, row, kept, refused)
    # What both sides of a pair share is told once.
    made.findings.extend(dict.fromkeys(faults), source=_name(made, source), row=row.index)


def _content_faults(made: Survey, row: _Row) -> Iterator[Fault]:
    masked = _masking(made.subject) != "all"
    for conversation in row.conversations:
        if conversation.repairs:
            yield Fault("repaired", ", ".join(conversation.repairs))
        yield from conversation_faults(conversation, made.foreign)
    for rendered in row.rendered:
        if rendered.conversation is not None:
            yield from rendering_faults(rendered.conversation, rendered, made.turns, masked=masked)


def _as_fault(error: RowError, source: SourceConfig, data: DataConfig) -> Fault:
    """As bad as what training does about it."""
    default = data.too_long if error.code == "too_long" else data.conflicts
    stopping = stops(error.code, source.on_fault, default=default)
    return Fault(error.code, error.what, "error" if stopping else "warning")


def _log(
    made: Survey,
    source: SourceConfig,
    number: int,
    row: _Row,
    kept: Sequence[Example],
    refused: Sequence[RowError],
) -> None:
    log = made.log
    log.owner.append(number)
    log.row.append(row.index)
    if refused:
        known = UNKNOWN_MODE if source.mode == "row" else source.mode
        _log_counts(log, mode=refused[0].mode or known, code=refused[0].code)
        return
    supervised = [len(one.labels) - one.labels.count(IGNORE_INDEX) for one in kept]
    tokens = len(kept[0].input_ids)
    if made.subject.kind == "preference":
        made.sides.add(*supervised)
        tokens += supervised[1]
    _log_counts(
        log,
        mode=kept[0].mode,
        repairs=",".join(row.conversations[0].repairs),
        tokens=tokens,
        supervised=sum(supervised),
        hashed=hash(tuple((one.mode, one.text) for one in row.rendered)),
    )


def _log_counts(
    log: RowLog,
    *,
    mode: str,
    code: str = "",
    repairs: str = "",
    tokens: int = 0,
    supervised: int = 0,
    hashed: int = 0,
) -> None:
    log.mode.append(mode)
    log.code.append(code)
    log.repairs.append(repairs)
    log.tokens.append(tokens)
    log.supervised.append(supervised)
    log.hashes.append(hashed)


def _sample(made: Survey, source: SourceConfig, row: _Row, kept: Sequence[Example]) -> None:
    """Remember the first rows of each source and mode as they are."""
    samples = made.samples.setdefault((kept[0].mode, source_label(source)), [])
    if len(samples) < SAMPLES and (sample := sample_of(row.conversations[0], kept[0])):
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
    if subject.kind == "preference":
        findings.extend(side_faults(made.sides), source=name)
    samples = [one for group in made.samples.values() for one in group] if masked else []
    for sample, fault in served_faults(samples, subject.tokenizer):
        place = sample.conversation
        findings.add(fault, source=subject.prefix + place.source, row=place.row)
    return rows


def _account(made: Survey, gathered: Gathered) -> Mapping[str, Any]:
    """As training settles the mixture; where it can't, every kept row counts once."""
    about, owner, data = made.log.about(), made.log.owners(), gathered.data
    if not len(owner):
        return {}
    kept = np.flatnonzero(about["code"] == "")
    try:
        settled = settle(about, owner, gathered.drawn, gathered.screened, data, made.subject.seed)
    except DataError as error:
        code = "mixture_impossible" if len(kept) else "nothing_left"
        made.findings.add(Fault(code, str(error)), source=_whole(made.subject))
        labels = [source_label(data.sources[number]) for number in owner]
        keys = list(zip(about["mode"], labels, strict=True))
        return account(tally_rows(keys, about, kept, kept[:0], {}))
    return settled.rows


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
