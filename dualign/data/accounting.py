"""The account of the rows: what came in, what was kept, what was left out and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualign.data.draws import Indices

Group = tuple[str, str]
"""(mode, source)"""
UNKNOWN_MODE = "unknown"
"""The mode of a row that was left out before its mode was known."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """The rows of one source and mode. `lengths` and `supervised` are the tokens of each row
    trained on, repeats included.
    """

    source: str
    mode: str
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    validation: int = 0
    repeats: int = 0
    lengths: list[int] = field(default_factory=list)
    supervised: int = 0


def tally_rows(
    keys: Sequence[Group],
    about: Mapping[str, Any],
    train: Indices,
    validation: Indices,
    unseen: Mapping[Group, Counter[str]],
) -> list[Tally]:
    """A tally for each group. `keys` and the columns of `about` have an entry for each tokenised
    row; `train` and `validation` are places in them, and `unseen` counts rows that weren't drawn, by the
    key of the recipe that left them out.
    """
    found: dict[Group, Tally] = {}

    def tally(key: Group) -> Tally:
        return found.setdefault(key, Tally(mode=key[0], source=key[1]))

    for key, code, repairs in zip(keys, about["code"], about["repairs"], strict=True):
        if code:
            tally(key).dropped[str(code)] += 1
        else:
            tally(key).kept += 1
            tally(key).repaired.update(str(repairs).split(",") if repairs else ())
    for key, counts in unseen.items():
        tally(key).dropped.update(counts)
    for row in validation.tolist():
        tally(keys[row]).validation += 1
    times = np.bincount(train, minlength=len(keys))
    for row in np.flatnonzero(times).tolist():
        one, count = tally(keys[row]), int(times[row])
        one.repeats += count - 1
        one.lengths += [int(about["tokens"][row])] * count
        one.supervised += int(about["supervised"][row]) * count
    return list(found.values())


def account(tallies: Iterable[Tally]) -> dict[str, Any]:
    """ROWS of run.json: in = kept + dropped, in total and for each source and mode.

    `kept` counts rows once. `validation` of them are held out; the others are trained on, `repeats`
    of them again: examples = kept - validation + repeats. `repaired` counts kept rows by what was
    done to them; a row with two repairs is in it twice. Tokens are those of the examples, so of one
    epoch, and a group's `share` is its part of them.
    """
    by = [_entry(tally) for tally in tallies]
    total = {key: sum(entry[key] for entry in by) for key in _SUMMED}
    for entry in by:
        entry["share"] = round(entry["tokens"] / total["tokens"], 6) if total["tokens"] else 0.0
    reasons = {name: _added(entry[name] for entry in by) for name in ("dropped", "repaired")}
    return {**total, **reasons, "by": by}


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    added: Counter[str] = Counter()
    for one in counts:
        added.update(one)
    return dict(sorted(added.items()))


_SUMMED = ("in", "kept", "validation", "repeats", "examples", "tokens", "supervised_tokens")


def _entry(tally: Tally) -> dict[str, Any]:
    examples = len(tally.lengths)
    assert examples == tally.kept - tally.validation + tally.repeats, "rows were lost"
    return {
        "source": tally.source,
        "mode": tally.mode,
        "in": tally.kept + tally.dropped.total(),
        "kept": tally.kept,
        "dropped": dict(sorted(tally.dropped.items())),
        "repaired": dict(sorted(tally.repaired.items())),
        "validation": tally.validation,
        "repeats": tally.repeats,
        "examples": examples,
        "tokens": sum(tally.lengths),
        "supervised_tokens": tally.supervised,
        "mean_tokens": round(sum(tally.lengths) / examples, 1) if examples else 0.0,
        "max_tokens": max(tally.lengths, default=0),
    }
