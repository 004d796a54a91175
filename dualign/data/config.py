"""The data part of a training stage's recipe. Nothing heavy is imported: recipes load from here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dualign.config import Document, nearest, parse
from dualign.data.columns import column_problems
from dualign.data.conversation import MODES
from dualign.data.policies import on_fault_problems
from dualign.model_ref import StageRef

Packing = Literal["best_fit", "wrapped", "none"]
Supervise = Literal["assistant", "last", "all", "answers", "thinking"]
TooLong = Literal["drop", "error", "cut_history", "cut_end", "cut_end_in_thinking"]
_AMOUNTS = ("weight", "tokens", "share")
"""Keys of a source that say how much of it is used, one at most. `rows` may say what they choose
from.
"""
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One file, folder, glob or hub dataset, and how much of it is used."""

    path: str
    """a file (json, jsonl, csv, parquet, arrow, or a document: txt, md, pdf, docx; also .gz or .zst), a
    glob, a folder, or a hub id"""
    name: str | None = None
    """the configuration of a hub dataset"""
    split: str = "train"
    """the split, with an optional slice such as train[:1000]"""
    revision: str | None = None
    """branch, tag or commit of a hub dataset"""
    mode: Literal["think", "no_think", "row"] = "row"
    """the mode of every row; row: each row says it, or it is read off its thinking"""
    weight: float | None = None
    """below 1: that seeded fraction of the rows; above 1: repeats, 2.5 = twice and a seeded half"""
    rows: int | None = None
    """at most so many rows, drawn by the seed; with tokens or share: those that they choose from"""
    tokens: int | None = None
    """so many tokens: rows are drawn by the seed until they hold them, to within one row"""
    share: float | None = None
    """this part of the tokens of an epoch, to within one row"""
    validation: bool = False
    """hold all these rows out, as of a test split: they are validated on, not trained on"""
    streaming: bool = False
    """read as a stream: with rows, no more than those reach the disk (docs/data.md)"""
    on_fault: Mapping[str, str] = field(default_factory=dict)
    """for each fault by its code, or any: error, drop, or a repair; absent: data.conflicts"""
    thinking_budget: int | None = None
    """traces are cut after that many tokens; then only the answer is learned"""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """our names, each with the file's column, path or template: {prompt: question, completion: answer}
    (docs/data.md)
    """
    label: str | None = None
    """the source's name in logs and tables; absent: made from the path"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not self.path.strip():
            issues.append(("path", "expected a file, a folder or a hub id, found nothing"))
        issues += _amount_problems(self)
        if self.streaming and "[" in self.split:
            issues.append(("split", f"a stream has no slices ({self.split}): use rows"))
        if self.thinking_budget is not None and self.thinking_budget < 1:
            expected = f"expected 1 token or more, found {self.thinking_budget}"
            issues.append(("thinking_budget", expected))
        return issues + on_fault_problems(self.on_fault) + column_problems(self.columns)


def _amount_problems(source: SourceConfig) -> list[tuple[str, str]]:
    """Return the issues of the keys that say how much of a source is used."""
    issues = []
    amounts = [key for key in _AMOUNTS if getattr(source, key) is not None]
    if source.weight is not None and source.rows is not None:
        issues.append(("rows", "weight is given too: expected one of them"))
    if source.validation and amounts:
        issues.append((amounts[0], "rows of validation are taken once: expected rows or nothing"))
    elif len(amounts) > 1:
        issues.append((amounts[1], f"{amounts[0]} is given too: expected one of them"))
    if source.weight is not None and not 0 < source.weight <= 1000:
        issues.append(("weight", f"expected more than 0 and at most 1000, found {source.weight}"))
    if source.share is not None and not 0 < source.share <= 1:
        issues.append(("share", f"expected more than 0 and at most 1, found {source.share}"))
    for key, count in (("rows", source.rows), ("tokens", source.tokens)):
        if count is not None and count < 1:
            issues.append((key, f"expected 1 or more, found {count}"))
    return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupConfig:
    """Rows that repeat an earlier one, of any source, are left out; modes are compared apart."""

    method: Literal["exact", "minhash"] = "exact"
    """exact: all is the same but spaces; minhash: also rows that share most of their words"""
    threshold: float = 0.8
    """of minhash: the share of n-grams from which two rows are near duplicates"""
    ngram: int = 5
    """of minhash: so many words in a row are compared"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not 0 < self.threshold <= 1:
            issues.append(("threshold", f"expected more than 0, at most 1, found {self.threshold}"))
        if self.ngram < 1:
            issues.append(("ngram", f"expected 1 or more, found {self.ngram}"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminateConfig:
    """Rows that hold a problem of the evaluation are left out."""

    tasks: tuple[str, ...]
    """task files, as an eval stage takes them"""
    ngram: int = 13
    """so many words in a row make a row hold a problem; a shorter problem has to be a whole turn"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        if not self.tasks:
            issues.append(("tasks", "expected one task file or more, found none"))
        if self.ngram < 3:
            issues.append(("ngram", f"expected 3 or more, found {self.ngram}"))
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Rows that are read, shuffled and packed while training runs."""

    shuffle_buffer: int = 10_000
    """rows of each process that are in memory: shuffled and packed together"""

    def problems(self) -> list[tuple[str, str]]:
        if self.shuffle_buffer < 1:
            return [("shuffle_buffer", f"expected 1 or more, found {self.shuffle_buffer}")]
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The rows of a training stage, and how they become tokens."""

    sources: tuple[SourceConfig, ...]
    """where the rows come from"""
    dedup: DedupConfig | None = None
    """absent: rows may repeat each other"""
    decontaminate: DecontaminateConfig | None = None
    """absent: rows may hold what is evaluated"""
    mix: Mapping[str, float] | None = None
    """the parts of the tokens that think and no_think get; whichever has too many loses rows"""
    validation_rows: int | float = 0
    """rows held out before packing, drawn by the seed over all sources; below 1: that part of them"""
    max_tokens: int = 2048
    """length of a packed row, and the most tokens a document may have unless packing is wrapped"""
    packing: Packing = "best_fit"
    """best_fit cuts nothing; wrapped joins documents and cuts every max_tokens; none: one each"""
    too_long: TooLong = "drop"
    """a row of more than max_tokens: left out; stops the run; loses its first turns until it fits;
    or its end, if no think block is cut by that, or even then
    """
    conflicts: Literal["error", "drop"] = "error"
    """what happens to a row that contradicts itself: stop, or leave it out and count it; a source's
    on_fault comes first"""
    supervise: Supervise = "assistant"
    """which tokens are learned: each assistant turn, the last one, all (no mask; mid-training), or
    of each assistant turn the answers or the thinking alone
    """
    cache: bool = True
    """keep what was prepared on disk, for later runs and for the other processes of a launch"""
    num_proc: int = 1
    """processes that read JSON, screen, tokenize and pack"""
    streaming: bool | StreamConfig | None = None
    """read the sources as streams that never fit on the disk (docs/data.md, "Streams"): true, or keys"""

    @property
    def stream(self) -> StreamConfig | None:
        """How the sources are streamed; None: their rows are prepared before training."""
        return StreamConfig() if self.streaming is True else self.streaming or None

    @property
    def validates(self) -> bool:
        """Whether any rows are held out."""
        return bool(self.validation_rows) or any(source.validation for source in self.sources)

    @property
    def folds_system(self) -> bool:
        """Whether rows are repaired for a template without a system role."""
        return any(
            source.on_fault.get("no_system_role") == "system_into_user" for source in self.sources
        )

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        trained = [source for source in self.sources if not source.validation]
        if not trained:
            kind = "one source or more to train on" if self.sources else "one source or more"
            issues.append(("sources", f"expected {kind}, found none"))
        issues += _share_problems(trained) + _mix_problems(self.mix, trained)
        if self.validation_rows < 0 or (self.validation_rows % 1 and self.validation_rows > 1):
            expected = "expected a number of rows, or a part below 1"
            issues.append(("validation_rows", f"{expected}, found {self.validation_rows}"))
        if self.max_tokens < 2:
            issues.append(("max_tokens", f"expected 2 or more, found {self.max_tokens}"))
        if self.num_proc < 1:
            issues.append(("num_proc", f"expected 1 or more, found {self.num_proc}"))
        return issues + (_stream_problems(self, trained) if self.stream else [])


def data_config(data: DataConfig | Mapping[str, Any] | str | Path) -> DataConfig:
    """Return the data part of a recipe, from its keys or from one path.

    Raises:
        ConfigError: a key or value is wrong; the message has all of them.
    """
    if isinstance(data, DataConfig):
        return data
    value = dict(data) if isinstance(data, Mapping) else {"sources": [{"path": str(data)}]}
    document = Document(file="data")
    # Tuples and paths become what a YAML file would give.
    config = parse(DataConfig, json.loads(json.dumps(value, default=str)), document)
    document.raise_problems()
    assert config is not None, "no problems means a configuration"
    return config


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionData:
    """Rows that a model is asked: questions with their answers."""

    sources: tuple[SourceConfig, ...]
    """where the rows come from; tokens, share, validation and thinking_budget don't apply"""
    conflicts: Literal["error", "drop"] = "error"
    """what happens to a row that can't be read: stop, or leave it out and count it"""

    @property
    def unknown(self) -> str:
        """Why the rows can't be counted before the stage runs, in words; "" if they can."""
        waiting = [ref.name for source in self.sources if (ref := StageRef.parse(source.path))]
        if waiting:
            return f"known when stage {', '.join(waiting)} has run"
        is_here = all(Path(source.path).exists() or "*" in source.path for source in self.sources)
        return "" if is_here else "known when the stage has read them"

    def problems(self) -> list[tuple[str, str]]:
        issues = [] if self.sources else [("sources", "expected one source or more, found none")]
        for number, source in enumerate(self.sources):
            issues += [
                (f"sources.{number}.{key}", "has no meaning where rows are asked: remove it")
                for key in ("tokens", "share", "validation", "thinking_budget")
                if getattr(source, key)
            ]
            if source.weight is not None and source.weight > 1:
                message = f"a row is asked once: expected 1 or less, found {source.weight}"
                issues.append((f"sources.{number}.weight", message))
        return issues


_NEEDS_ALL_ROWS = "needs all rows beforehand, and a stream has no end: remove it, or streaming"
"""Why a key has no meaning with `streaming`."""


def _stream_problems(data: DataConfig, trained: Sequence[SourceConfig]) -> list[tuple[str, str]]:
    """Return the keys that can't hold while rows are read as they come."""
    issues = [] if data.dedup is None else [("dedup", _NEEDS_ALL_ROWS)]
    if data.validation_rows % 1:
        expected = "a stream has no length to take a part of: expected a number of rows"
        issues.append(("validation_rows", f"{expected}, found {data.validation_rows}"))
    if data.num_proc > 1:
        message = "a stream is prepared by one thread of each process: remove it"
        issues.append(("num_proc", message))
    for number, source in enumerate(data.sources):
        key = f"sources.{number}"
        issues += [
            (f"{key}.{amount}", _NEEDS_ALL_ROWS)
            for amount in ("tokens", "rows")
            if getattr(source, amount) is not None and source in trained
        ]
        if (source.weight or 0) > 1:
            message = "a stream begins again where it ends: say how much of it by share"
            issues.append((f"{key}.weight", message))
        if "[" in source.split:
            issues.append((f"{key}.split", f"a stream has no slices, found {source.split}"))
    if sum(source.share is None for source in trained) > 1:
        message = "streams have no length: give each source but one its share of the tokens"
        issues.append(("sources", message))
    return issues


def _share_problems(sources: Sequence[SourceConfig]) -> list[tuple[str, str]]:
    shares = [source.share for source in sources if source.share is not None]
    total, all_shared = sum(shares), len(shares) == len(sources)
    if not shares or (abs(total - 1) < _ROUNDING and all_shared):
        return []
    if all_shared:
        return [("sources", f"every source has a share and they add up to {total:g}: expected 1")]
    if total >= 1 - _ROUNDING:
        message = f"shares add up to {total:g}: nothing is left for the sources without one"
        return [("sources", message)]
    return []


def _mix_problems(
    mix: Mapping[str, float] | None, sources: Sequence[SourceConfig]
) -> list[tuple[str, str]]:
    if mix is None:
        return []
    issues = [
        (f"mix.{mode}", f"no mode{nearest(mode, MODES)}") for mode in mix if mode not in MODES
    ]
    issues += [
        (f"mix.{mode}", f"expected 0 to 1, found {mix[mode]}") for mode in mix if mix[mode] < 0
    ]
    if not issues and abs(sum(mix.values()) - 1) > _ROUNDING:
        issues.append(("mix", f"the parts add up to {sum(mix.values()):g}: expected 1"))
    modes = {source.mode for source in sources}
    for mode, part in mix.items():
        if part > 0 and modes and not modes & {mode, "row"}:
            issues.append((f"mix.{mode}", f"every source says another mode: {', '.join(modes)}"))
    return issues
