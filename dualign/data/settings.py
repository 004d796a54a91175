"""The dataclasses that several stages share. Nothing heavy is imported: recipes load from here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dualign.data.policies import on_fault_problems

Packing = Literal["best_fit", "wrapped", "none"]
Supervise = Literal["assistant", "last", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One file, folder, glob or hub dataset, and how much of it is used."""

    path: str
    """a file (json, jsonl, csv, parquet, arrow, also .gz), a glob, a folder, or a hub id"""
    name: str | None = None
    """the configuration of a hub dataset"""
    split: str = "train"
    """the split, with an optional slice such as train[:1000]"""
    revision: str | None = None
    """branch, tag or commit of a hub dataset"""
    mode: Literal["think", "no_think", "row"] = "row"
    """the mode of every row; row: each row says it, or it is read off its thinking"""
    weight: float = 1.0
    """below 1: that seeded fraction of the rows; above 1: repeats, 2.5 = twice and a seeded half"""
    on_fault: Mapping[str, str] = field(default_factory=dict)
    """for each fault by its code, or any: error, drop, or a repair; absent: data.conflicts"""
    label: str | None = None
    """the source's name in logs and tables; absent: made from the path"""

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not self.path.strip():
            found.append(("path", "expected a file, a folder or a hub id, found nothing"))
        if not 0 < self.weight <= 1000:
            found.append(("weight", f"expected more than 0 and at most 1000, found {self.weight}"))
        return found + on_fault_problems(self.on_fault)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What a training stage is fed with, and how its rows become tokens."""

    sources: tuple[SourceConfig, ...]
    """where the rows come from"""
    validation_rows: int = 0
    """rows held out before packing, drawn by the seed over all sources"""
    max_tokens: int = 2048
    """length of a packed row, and the most tokens a document may have unless packing is wrapped"""
    packing: Packing = "best_fit"
    """best_fit cuts nothing; wrapped joins documents and cuts every max_tokens; none: one each"""
    too_long: Literal["drop", "error"] = "drop"
    """what happens to a row of more than max_tokens"""
    conflicts: Literal["error", "drop"] = "error"
    """what happens to a row that contradicts itself: stop, or leave it out and count it; a source's
    on_fault comes first"""
    supervise: Supervise = "assistant"
    """which tokens are learnt: each assistant turn, the last one, or all (no mask; mid-training)"""

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not self.sources:
            found.append(("sources", "expected one source or more, found none"))
        if self.validation_rows < 0:
            found.append(("validation_rows", f"expected 0 or more, found {self.validation_rows}"))
        if self.max_tokens < 2:
            found.append(("max_tokens", f"expected 2 or more, found {self.max_tokens}"))
        return found
