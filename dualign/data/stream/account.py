"""Where the rows of a stream went: kept, held out, or left out and why."""

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

from dualign.data.conversation import Group
from dualign.data.mix.row_table import RowStats, summarize_rows

_SUMMED = ("kept", "validation", "repeats", "examples", "tokens", "supervised")


@dataclass(kw_only=True, slots=True)
class Account:
    """The rows of each mode and source. Rows of a later pass are counted as repeats where they are
    trained on, and else not at all.
    """

    groups: dict[Group, RowStats] = field(default_factory=dict)

    def of(self, group: Group) -> RowStats:
        """Return the counts of a group, which may be changed."""
        return self.groups.setdefault(group, RowStats(mode=group[0], source=group[1]))

    def drop(self, group: Group, code: str, count: int = 1) -> None:
        """Count rows that were left out."""
        if count:
            self.of(group).dropped[code] += count

    def keep(self, group: Group, repairs: str) -> RowStats:
        """Count a kept row with its repairs."""
        stats = self.of(group)
        stats.kept += 1
        stats.repaired.update(filter(None, repairs.split(",")))
        return stats

    def copy(self) -> "Account":
        return deepcopy(self)

    def add(self, other: "Account") -> None:
        """Add the rows of another process."""
        for group, theirs in other.groups.items():
            ours = self.of(group)
            for name in _SUMMED:
                setattr(ours, name, getattr(ours, name) + getattr(theirs, name))
            ours.dropped.update(theirs.dropped)
            ours.repaired.update(theirs.repaired)
            ours.longest = max(ours.longest, theirs.longest)

    def total(self, source: str) -> int:
        """Return how many rows of a source were read, each counted once."""
        return sum(
            stats.kept + stats.dropped.total()
            for (_, label), stats in self.groups.items()
            if label == source
        )

    def summary(self, labels: Iterable[str]) -> dict[str, Any]:
        """Return ROWS of run.json, the groups in the order of the sources."""
        order = {label: number for number, label in enumerate(labels)}
        keys = sorted(self.groups, key=lambda key: (order[key[1]], key[0]))
        return summarize_rows(self.groups[key] for key in keys)

    def state(self) -> list[dict[str, Any]]:
        """Return the account as JSON."""
        names = [entry.name for entry in fields(RowStats)]
        # dataclasses.asdict counts the items of a Counter anew.
        return [
            {name: copy(getattr(stats, name)) for name in names} for stats in self.groups.values()
        ]

    @classmethod
    def from_state(cls, state: Iterable[Mapping[str, Any]]) -> "Account":
        account = cls()
        for entry in state:
            counters = {name: Counter(entry[name]) for name in ("dropped", "repaired")}
            account.groups[entry["mode"], entry["source"]] = RowStats(**{**entry, **counters})
        return account
