"""Findings, and the explanation of each code: its meaning for the model, and the fix."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import yaml

Severity = Literal["error", "warning", "info"]
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
MAX_LISTED = 1000
"""Findings of one group that are stored; the others are only counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Meaning of a code, from codes.yaml. `severity` is its default."""

    severity: Severity
    summary: str
    means: str
    fix: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, or fact worth knowing. Checks give code and message; `Findings` adds the place."""

    code: str
    message: str
    own_severity: Severity | None = None
    """None: the severity of the code"""
    source: str = ""
    row: int | None = None
    """index in `source`, if it is about a row"""

    @property
    def severity(self) -> Severity:
        return self.own_severity or explanations()[self.code].severity

    @property
    def means(self) -> str:
        return explanations()[self.code].means

    @property
    def fix(self) -> str:
        return explanations()[self.code].fix


class FindingGroup(NamedTuple):
    """Findings that are shown together."""

    code: str
    source: str
    severity: Severity


@cache
def explanations() -> Mapping[str, Explanation]:
    """Return code -> explanation, in the order of codes.yaml."""
    return {code: entry for group in explanation_groups().values() for code, entry in group.items()}


@cache
def explanation_groups() -> Mapping[str, Mapping[str, Explanation]]:
    """Return group (rows, rendering, template, ...) -> code -> explanation."""
    text = (files("dualign.doctor") / "codes.yaml").read_text(encoding="utf-8")
    return {
        group: {code: Explanation(**entry) for code, entry in codes.items()}
        for group, codes in yaml.safe_load(text).items()
    }


@dataclass(kw_only=True, slots=True)
class Findings:
    """Collector with bounded memory: all findings of a group are counted, the first ones stored."""

    counts: Counter[FindingGroup] = field(default_factory=Counter)
    listed: dict[FindingGroup, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding, *, source: str, row: int | None = None) -> None:
        group = FindingGroup(finding.code, source, finding.severity)
        self.counts[group] += 1
        if self.counts[group] <= MAX_LISTED:
            listed = self.listed.setdefault(group, [])
            listed.append(replace(finding, source=source, row=row))

    def extend(self, findings: Iterable[Finding], *, source: str, row: int | None = None) -> None:
        for finding in findings:
            self.add(finding, source=source, row=row)

    def groups(self) -> list[FindingGroup]:
        """Return the groups: worst first, then those with most findings, then as in codes.yaml."""
        codes = list(explanations())
        return sorted(
            self.counts,
            key=lambda group: (
                _SEVERITIES.index(group.severity),
                -self.counts[group],
                codes.index(group.code),
            ),
        )

    def all(self) -> list[Finding]:
        """Return the stored findings, worst first."""
        return [finding for group in self.groups() for finding in self.listed[group]]

    @property
    def errors(self) -> int:
        return sum(count for group, count in self.counts.items() if group.severity == "error")
