"""One pass over all rows of a stage's data, on training's own path, with every check on the way.

Faults are collected instead of raised. Only the length and a hash of each row stay in memory.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import RowType
from dualign.data.faults import RowError
from dualign.data.mix.row_table import count_rows, group_rows, summarize_rows
from dualign.data.mix.selection import select_rows
from dualign.data.mix.switching import PromptSettings, same_prompt
from dualign.data.policies import stops
from dualign.data.request import DataRequest, without_stream
from dualign.data.rows.loading import SampledRows
from dualign.data.rows.sources import source_label
from dualign.data.seeds import indices_of
from dualign.data.text.template import ChatTemplate
from dualign.data.tokens.encoders import ENCODERS
from dualign.data.tokens.encoding import EncodedRow, Encoder
from dualign.doctor.balance import PairTokens, Verdicts, check_modes, check_pair_lengths
from dualign.doctor.findings import Finding, Findings
from dualign.doctor.row_log import RowLog
from dualign.doctor.rows import check_conversation, foreign_markers
from dualign.doctor.sources import ReadableSources, read_sources
from dualign.doctor.tokens import (
    PromptSample,
    check_example,
    check_served_prompts,
    prompt_sample,
    unknown_id,
)
from dualign.errors import DataError
from dualign.models.new_tokens import never_used

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 512
_SAMPLES = 8
"""Rows of each source and mode whose prompts are rendered again by the saved tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SurveyInput:
    """The data of a stage, with the tokenizer and the template that train on it."""

    row_type: RowType = "conversation"
    """what the rows are"""
    data: DataConfig
    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate
    seed: int = 42
    prefix: str = ""
    """put before the names of the sources"""
    base: Path | None = None
    """folder that relative paths start from"""
    trained: bool = True
    """a stage trains on these rows alone"""
    new_tokens: Sequence[str] = ()
    """what the stage adds to the tokenizer"""


def survey(subject: SurveyInput, findings: Findings) -> Mapping[str, Any]:
    """Check every row that training would read; return ROWS of run.json."""
    request = without_stream(
        DataRequest(
            subject.data, subject.tokenizer, subject.template, seed=subject.seed, base=subject.base
        )
    )
    sources = read_sources(request, findings, row_type=subject.row_type, prefix=subject.prefix)
    state = _Survey(
        subject=replace(subject, data=sources.data),
        findings=findings,
        foreign=foreign_markers(subject.tokenizer),
        unknown=unknown_id(subject.tokenizer),
        unused=set(subject.tokenizer.convert_tokens_to_ids(list(subject.new_tokens))),
        known="mode_imbalance" if subject.data.stream and subject.data.mix else "",
    )
    screened = zip(sources.data.sources, sources.screened.sampled, strict=True)
    for index, (source, rows) in enumerate(screened):
        encoder = state.encoder(source, rows)
        for start, batch in enumerate(rows.stored.iter(batch_size=_BATCH_ROWS)):
            numbers = rows.rows[start * _BATCH_ROWS : (start + 1) * _BATCH_ROWS].tolist()
            for row in encoder.encode(batch, numbers):
                state.check_row(source, index, row)
    return state.conclude(sources)


@dataclass(kw_only=True, slots=True)
class _Survey:
    """State of the pass."""

    subject: SurveyInput
    findings: Findings
    foreign: re.Pattern[str]
    unknown: int | None
    log: RowLog = field(default_factory=RowLog)
    samples: dict[tuple[str, str], list[PromptSample]] = field(default_factory=dict)
    pair_tokens: PairTokens = field(default_factory=PairTokens)
    verdicts: Verdicts = field(default_factory=Verdicts)
    settings: PromptSettings = field(default_factory=PromptSettings)
    unused: set[int] = field(default_factory=set)
    """new tokens that no row held so far"""
    known: str = ""
    """a finding that isn't one: `mix` weighs the modes of a stream, whose first rows are looked at as they are"""

    def encoder(self, source: SourceConfig, rows: SampledRows) -> Encoder:
        """Return training's encoder, but drop rows where training would stop."""
        subject = self.subject
        dropping = {
            code: "drop" if policy == "error" else policy
            for code, policy in source.on_fault.items()
        }
        too_long = "drop" if subject.data.too_long == "error" else subject.data.too_long
        return ENCODERS[subject.row_type](
            source=replace(source, on_fault=dropping),
            data=replace(subject.data, conflicts="drop", too_long=too_long),
            tokenizer=subject.tokenizer,
            template=subject.template,
            rows=rows.rows,
            parsed=rows.parsed,
            structs=rows.structs,
        )

    def check_row(self, source: SourceConfig, source_index: int, row: EncodedRow) -> None:
        """Run all checks of one row, and log it."""
        asked = [conversation for conversation in row.conversations if conversation.raw is None]
        findings = [
            finding
            for conversation in asked
            for finding in check_conversation(conversation, self.foreign)
        ]
        if row.fault:
            findings.append(_from_error(row.fault, source, self.subject.data))
        else:
            examples = [example for side in row.examples for example in side]
            findings += [f for example in examples for f in check_example(example, self.unknown)]
            if self.unused:
                self.unused.difference_update(*(example.input_ids for example in examples))
            samples = self.samples.setdefault((row.entry["mode"], source_label(source)), [])
            if asked and len(samples) < _SAMPLES and (sample := prompt_sample(row)):
                samples.append(sample)
        if row.entry["repairs"]:
            findings.append(Finding("repaired", str(row.entry["repairs"])))
        if "chosen_ids" in row.entry:
            self.pair_tokens.add(len(row.entry["chosen_ids"]), len(row.entry["rejected_ids"]))
        if "desirable" in row.entry and not row.entry["code"]:
            self.verdicts.add(row.entry["mode"], row.entry["desirable"])
        self.log.add(source_index, row)
        place = f"{self._name(source)}, row {row.row}"
        self.settings.add(row.entry["mode"], row.entry["setting"], place)
        # Report a fault common to chosen and rejected once.
        self.findings.extend(dict.fromkeys(findings), source=self._name(source), row=row.row)

    def conclude(self, sources: ReadableSources) -> Mapping[str, Any]:
        """Run the checks that need all rows; return ROWS."""
        subject, findings = self.subject, self.findings
        self._report_repeats()
        if pair := self.settings.shared():
            message = same_prompt(pair, subject.template)
            findings.add(Finding("mode_switch_dead", message, "error"), source=self._stage)
        rows = self._count_rows(sources)
        masked = subject.data.supervise != "all"
        if masked:
            balance = check_modes(rows.get("by", ()), trained=subject.trained)
            new = (finding for finding in balance if finding.code != self.known)
            findings.extend(new, source=self._stage)
        if subject.row_type == "pair":
            findings.extend(check_pair_lengths(self.pair_tokens), source=self._stage)
        findings.extend(self.verdicts.check(), source=self._stage)
        for token in subject.tokenizer.convert_ids_to_tokens(sorted(self.unused)):
            findings.add(Finding("new_token_unused", never_used(token)), source=self._stage)
        samples = [sample for group in self.samples.values() for sample in group] if masked else []
        for sample, finding in check_served_prompts(samples, subject.tokenizer):
            conversation = sample.conversation
            source = subject.prefix + conversation.source
            findings.add(finding, source=source, row=conversation.row)
        return rows

    def _count_rows(self, sources: ReadableSources) -> Mapping[str, Any]:
        """Select rows as training does; if that fails, count every row that isn't refused once."""
        rows, data = self.log.row_table(), sources.data
        if not len(rows):
            return {}
        trainable = indices_of(rows.code.equals(""))
        try:
            seed = self.subject.seed
            return select_rows(rows, sources.sampled, sources.screened, data, seed).rows
        except DataError as error:
            code = "mixture_impossible" if len(trainable) else "nothing_left"
            self.findings.add(Finding(code, str(error)), source=self._stage)
            labels = [source_label(source) for source in data.sources]
            group, groups = group_rows(rows, labels)
            return summarize_rows(count_rows(rows, group, groups, trainable, trainable[:0], {}))

    def _report_repeats(self) -> None:
        """Add a finding for every row with the text of an earlier one."""
        log, names = self.log, [self._name(source) for source in self.subject.data.sources]
        for index, earlier in log.repeats().items():
            message = (
                f"the same text as row {log.row[earlier]} of {names[log.source_index[earlier]]}"
            )
            source = names[log.source_index[index]]
            self.findings.add(Finding("duplicate_row", message), source=source, row=log.row[index])

    def _name(self, source: SourceConfig) -> str:
        return self.subject.prefix + source_label(source)

    @property
    def _stage(self) -> str:
        """Source of the findings about all sources together."""
        return self.subject.prefix.rstrip("/") or "all sources"


def _from_error(error: RowError, source: SourceConfig, data: DataConfig) -> Finding:
    """Return the error as a finding: an error only if training would stop."""
    default = data.too_long if error.code == "too_long" else data.conflicts
    stopping = stops(error.code, source.on_fault, default=default)
    return Finding(error.code, error.what, "error" if stopping else "warning")
