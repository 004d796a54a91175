"""The account of the rows: what came in, what was kept, what was left out and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualign.data.conversation import Group
from dualign.data.mix.row_table import Chosen, Tokenised
from dualign.data.seeds import Indices


@dataclass(kw_only=True, slots=True)
class Tally:
    """The rows of one source and mode. `examples`, `tokens`, `supervised` and `longest` are of the rows
    trained on, repeats included.
    """

    source: str
    mode: str
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    validation: int = 0
    repeats: int = 0
    examples: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0


def grouped(rows: Tokenised, labels: Sequence[str]) -> tuple[Indices, list[Group]]:
    """The group of each row, as a place in the list of all groups, which come in the order of their
    first rows.
    """
    names = rows.mode.names
    keys = rows.owner * len(names) + rows.mode.place
    first = {key: int((keys == key).argmax()) for key in np.flatnonzero(np.bincount(keys)).tolist()}
    ordered = sorted(first, key=first.__getitem__)
    place = np.zeros(len(labels) * len(names), dtype=np.int32)
    place[ordered] = np.arange(len(ordered))
    return place[keys], [(names[key % len(names)], labels[key // len(names)]) for key in ordered]


def tally_rows(
    rows: Tokenised,
    group: Indices,
    groups: Sequence[Group],
    train: Indices,
    validation: Indices,
    unseen: Mapping[Group, Counter[str]],
) -> list[Tally]:
    """A tally for each group. `train` and `validation` are places in `rows`, and `unseen` counts rows
    that weren't drawn, by the key of the recipe that left them out.
    """
    found = {
        key: _tally(key, rows, group == number, train[group[train] == number], validation)
        for number, key in enumerate(groups)
    }
    for key, counts in unseen.items():
        found.setdefault(key, Tally(mode=key[0], source=key[1])).dropped.update(counts)
    return list(found.values())


def _tally(key: Group, rows: Tokenised, mine: Chosen, train: Indices, validation: Indices) -> Tally:
    codes = rows.code.counted(mine)
    kept = codes.pop("", 0)
    repaired: Counter[str] = Counter()
    for repairs, count in rows.repairs.counted(mine & rows.code.holds("")).items():
        repaired.update(dict.fromkeys(filter(None, repairs.split(",")), count))
    once = np.zeros(len(rows), dtype=bool)
    once[train] = True
    return Tally(
        mode=key[0],
        source=key[1],
        kept=kept,
        dropped=codes,
        repaired=repaired,
        validation=int(mine[validation].sum()),
        repeats=len(train) - int(once.sum()),
        examples=len(train),
        tokens=int(rows.tokens[train].sum()),
        supervised=int(rows.supervised[train].sum()),
        longest=int(rows.tokens[train].max(initial=0)),
    )


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
    examples = tally.examples
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
        "tokens": tally.tokens,
        "supervised_tokens": tally.supervised,
        "mean_tokens": round(tally.tokens / examples, 1) if examples else 0.0,
        "max_tokens": tally.longest,
    }
