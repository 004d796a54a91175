"""All rows of a stage's data, once, on the path that training takes, with every check on the way.

Faults are collected instead of raised. What stays in memory of a row is its length and a hash.
"""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dualign.data.accounting import UNKNOWN_MODE, Tally, account
from dualign.data.conversation import Conversation, PreferencePair
from dualign.data.faults import RowError
from dualign.data.loading import load_source
from dualign.data.policies import stops
from dualign.data.settings import DataConfig, SourceConfig
from dualign.data.sources import source_label, to_conversation, to_pair
from dualign.data.spans import Rendered
from dualign.data.template import ChatTemplate
from dualign.data.text_rules import TextRules, text_rules
from dualign.data.tokens import IGNORE_INDEX, Example, encode_batch
from dualign.doctor.balance import Sides, balance_faults, side_faults
from dualign.doctor.findings import Fault, Findings
from dualign.doctor.rendering import Turns, rendering_faults, turns_of
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
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    places: "array[int]" = field(default_factory=lambda: array("q"))
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    sides: Sides = field(default_factory=Sides)


def survey(subject: Subject, findings: Findings) -> Mapping[str, Any]:
    """Check every row of every source; the account of the rows, as in run.json."""
    made = Survey(
        subject=subject,
        findings=findings,
        foreign=foreign_markers(subject.tokenizer),
        rules=text_rules(subject.tokenizer, subject.template),
        turns=turns_of(subject.template),
        unknown=unknown_id(subject.tokenizer),
    )
    for number, source in enumerate(subject.data.sources):
        try:
            rows = load_source(source, base=subject.base)
        except DataError as error:
            findings.add(Fault("source_unreadable", str(error)), source=_name(made, source))
            continue
        for start, batch in enumerate(rows.iter(batch_size=BATCH)):
            _survey_batch(made, source, number, batch, start * BATCH)
    _conclude(made)
    return account(made.tallies.values())


def _survey_batch(
    made: Survey, source: SourceConfig, number: int, batch: Mapping[str, list[Any]], start: int
) -> None:
    size = len(next(iter(batch.values())))
    raw = ({key: values[at] for key, values in batch.items()} for at in range(size))
    rows = [_rendered(made, source, row, start + at) for at, row in enumerate(raw)]
    data = made.subject.data
    limit = None if data.packing == "wrapped" else data.max_tokens
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
        texts = tuple(template.render(one, supervise=masking) for one in conversations)
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


def _masking(subject: Subject) -> Literal["assistant", "last", "all"]:
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
        _remember(made, source, number, row, kept)
    _count(made, source, row, kept, refused)
    # What both sides of a pair share is told once.
    made.findings.extend(dict.fromkeys(faults), source=_name(made, source), row=row.index)


def _content_faults(made: Survey, row: _Row) -> Iterator[Fault]:
    masked = _masking(made.subject) != "all"
    for conversation in row.conversations:
        if conversation.repairs:
            yield Fault("repaired", ", ".join(conversation.repairs))
        yield from conversation_faults(conversation, made.foreign)
    for conversation, rendered in zip(row.conversations, row.rendered, strict=False):
        yield from rendering_faults(conversation, rendered, made.turns, masked=masked)


def _as_fault(error: RowError, source: SourceConfig, data: DataConfig) -> Fault:
    """As bad as what training does about it."""
    default = data.too_long if error.code == "too_long" else data.conflicts
    stopping = stops(error.code, source.on_fault, default=default)
    return Fault(error.code, error.what, "error" if stopping else "warning")


def _count(
    made: Survey,
    source: SourceConfig,
    row: _Row,
    kept: Sequence[Example],
    refused: Sequence[RowError],
) -> None:
    label = source_label(source)
    known = UNKNOWN_MODE if source.mode == "row" else source.mode
    mode = (refused[0].mode if refused else kept[0].mode) or known
    tally = made.tallies.setdefault((mode, label), Tally(mode=mode, source=label))
    if refused:
        tally.dropped[refused[0].code] += 1
        return
    supervised = [len(one.labels) - one.labels.count(IGNORE_INDEX) for one in kept]
    tally.kept += 1
    tally.repaired.update(row.conversations[0].repairs)
    tally.supervised += sum(supervised)
    if made.subject.kind == "preference":
        made.sides.add(*supervised)
        prompt = len(kept[0].input_ids) - supervised[0]
        tally.lengths.append(prompt + sum(supervised))
    else:
        tally.lengths.append(len(kept[0].input_ids))


def _remember(
    made: Survey, source: SourceConfig, number: int, row: _Row, kept: Sequence[Example]
) -> None:
    """What is needed of a row at the end: whether it came before, and a few whole rows."""
    made.hashes.append(hash(tuple((one.mode, one.text) for one in row.rendered)))
    made.places.append(number << 40 | row.index)
    samples = made.samples.setdefault((kept[0].mode, source_label(source)), [])
    if len(samples) < SAMPLES and (sample := sample_of(row.conversations[0], kept[0])):
        samples.append(sample)


def _conclude(made: Survey) -> None:
    """What only all rows together can show."""
    subject, findings = made.subject, made.findings
    _duplicates(made)
    weights = {source_label(one): one.weight or 1.0 for one in subject.data.sources}
    tallies = list(made.tallies.values())
    mixed = subject.data.supervise != "all"
    if mixed:
        faults = balance_faults(tallies, weights, trained=subject.trained)
        findings.extend(faults, source=subject.prefix.rstrip("/"))
    if subject.kind == "preference":
        findings.extend(side_faults(made.sides), source=subject.prefix.rstrip("/"))
    if tallies and not any(tally.kept for tally in tallies):
        dropped = ", ".join(f"{code} {n}" for one in tallies for code, n in one.dropped.items())
        findings.add(Fault("nothing_left", f"left out: {dropped}"), source=subject.prefix)
    samples = [one for group in made.samples.values() for one in group] if mixed else []
    for sample, fault in served_faults(samples, subject.tokenizer):
        place = sample.conversation
        findings.add(fault, source=subject.prefix + place.source, row=place.row)


def _duplicates(made: Survey) -> None:
    """Every row whose hash came before, in the order of the rows."""
    hashes = np.frombuffer(made.hashes, dtype=np.int64) if made.hashes else np.empty(0, np.int64)
    _, first, where = np.unique(hashes, return_index=True, return_inverse=True)
    labels = [_name(made, source) for source in made.subject.data.sources]
    for at in np.flatnonzero(first[where] != np.arange(len(hashes))).tolist():
        (number, row), (other, earlier) = (
            divmod(made.places[place], 1 << 40) for place in (at, int(first[where[at]]))
        )
        found = f"the same text as row {earlier} of {labels[other]}"
        made.findings.add(Fault("duplicate_row", found), source=labels[number], row=row)


def _name(made: Survey, source: SourceConfig) -> str:
    return made.subject.prefix + source_label(source)
