"""What doctor says: a finding, what it means for the model, and what to do about it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import yaml

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
MOST_KEPT = 1000
"""Findings of one code and source that are kept with their rows; the others are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What a code stands for. `severity` is how bad it is unless the place says otherwise."""

    severity: Severity
    found: str
    means: str
    fix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing. `row` is its place in `source`, if it has one."""

    code: str
    severity: Severity
    source: str
    row: int | None
    message: str
    means: str
    fix: str


class Fault(NamedTuple):
    """What a check saw. Without a severity it is as bad as its code."""

    code: str
    message: str
    severity: Severity | None = None


class Group(NamedTuple):
    """Findings that are shown together."""

    code: str
    source: str
    severity: Severity


@cache
def explanations() -> Mapping[str, Explanation]:
    """Every code with its explanation, in the order of codes.yaml."""
    return {code: found for group in explained().values() for code, found in group.items()}


@cache
def explained() -> Mapping[str, Mapping[str, Explanation]]:
    """The codes of each noun: rows, rendering, template, tokens, balance, directory, recipe."""
    text = (files("dualign.doctor") / "codes.yaml").read_text(encoding="utf-8")
    return {
        noun: {code: Explanation(**about) for code, about in codes.items()}
        for noun, codes in yaml.safe_load(text).items()
    }


@dataclass(kw_only=True, slots=True)
class Findings:
    """Collects findings. Memory is bounded: of each group all are counted and the first are kept."""

    counts: Counter[Group] = field(default_factory=Counter)
    kept: dict[Group, list[Finding]] = field(default_factory=dict)

    def add(self, fault: Fault, *, source: str, row: int | None = None) -> None:
        about = explanations()[fault.code]
        severity = fault.severity or about.severity
        group = Group(fault.code, source, severity)
        self.counts[group] += 1
        if self.counts[group] > MOST_KEPT:
            return
        finding = Finding(
            code=fault.code,
            severity=severity,
            source=source,
            row=row,
            message=fault.message,
            means=about.means,
            fix=about.fix,
        )
        self.kept.setdefault(group, []).append(finding)

    def extend(self, faults: Iterable[Fault], *, source: str, row: int | None = None) -> None:
        for fault in faults:
            self.add(fault, source=source, row=row)

    def groups(self) -> list[Group]:
        """The worst first, then in the order of codes.yaml."""
        codes = list(explanations())
        return sorted(
            self.counts, key=lambda one: (SEVERITIES.index(one.severity), codes.index(one.code))
        )

    def all(self) -> list[Finding]:
        """The findings that were kept, the worst first."""
        return [finding for group in self.groups() for finding in self.kept[group]]

    @property
    def errors(self) -> int:
        return sum(count for group, count in self.counts.items() if group.severity == "error")
