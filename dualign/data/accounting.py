"""The account of the rows: what came in, what was kept, what was left out and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    lengths: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    supervised: int = 0


def grouped(
    modes: NDArray[Any], owner: Indices, labels: Sequence[str]
) -> tuple[Indices, list[Group]]:
    """The group of each row, as a place in the list of all groups; `owner` is the number of its
    source. Groups come in the order of their first rows.
    """
    names = list(dict.fromkeys(modes.tolist()))
    place = {name: number for number, name in enumerate(names)}
    mode = np.fromiter((place[name] for name in modes), dtype=np.int64, count=len(modes))
    keys, first, which = np.unique(
        owner * len(names) + mode, return_index=True, return_inverse=True
    )
    by_first = np.argsort(first)
    groups = [
        (names[key % len(names)], labels[key // len(names)]) for key in keys[by_first].tolist()
    ]
    return np.argsort(by_first)[which], groups


def tally_rows(
    group: Indices,
    groups: Sequence[Group],
    about: Mapping[str, Any],
    train: Indices,
    validation: Indices,
    unseen: Mapping[Group, Counter[str]],
) -> list[Tally]:
    """A tally for each group. `group` and the columns of `about` have an entry for each tokenised
    row; `train` and `validation` are places in them, and `unseen` counts rows that weren't drawn, by the
    key of the recipe that left them out.
    """
    found = {
        key: _tally(key, group == number, about, train[group[train] == number], validation)
        for number, key in enumerate(groups)
    }
    for key, counts in unseen.items():
        found.setdefault(key, Tally(mode=key[0], source=key[1])).dropped.update(counts)
    return list(found.values())


def _tally(
    key: Group,
    mine: NDArray[np.bool_],
    about: Mapping[str, Any],
    train: Indices,
    validation: Indices,
) -> Tally:
    codes = Counter(about["code"][mine].tolist())
    kept = codes.pop("", 0)
    repaired: Counter[str] = Counter()
    mended = Counter(about["repairs"][mine & (about["code"] == "")].tolist())
    for repairs, count in mended.items():
        repaired.update(dict.fromkeys(filter(None, repairs.split(",")), count))
    return Tally(
        mode=key[0],
        source=key[1],
        kept=kept,
        dropped=codes,
        repaired=repaired,
        validation=int(mine[validation].sum()),
        repeats=len(train) - len(np.unique(train)),
        lengths=about["tokens"][train],
        supervised=int(about["supervised"][train].sum()),
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
        "tokens": int(tally.lengths.sum()),
        "supervised_tokens": tally.supervised,
        "mean_tokens": round(int(tally.lengths.sum()) / examples, 1) if examples else 0.0,
        "max_tokens": int(tally.lengths.max(initial=0)),
    }
