"""How many rated answers are desirable: counted, and refused where all have one verdict."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

VERDICTS = ("desirable", "undesirable")


def count_verdicts(metadata: Mapping[str, Any], rows: Iterable[tuple[int, bool]]) -> dict[str, Any]:
    """Return ROWS with the number of desirable and undesirable rows, in total and for each source and mode.

    Args:
        metadata: ROWS as `rows`, and `groups`, the (mode, source) names.
        rows: of each row that is trained on, its place in `groups` and whether it is desirable.
    """
    counts = Counter(rows)
    groups = [(mode, source) for mode, source in metadata["groups"]]
    by = []
    for entry in metadata["rows"]["by"]:
        name = (entry["mode"], entry["source"])
        place = groups.index(name) if name in groups else -1
        by.append({**entry, VERDICTS[0]: counts[place, True], VERDICTS[1]: counts[place, False]})
    total = {name: sum(entry[name] for entry in by) for name in VERDICTS}
    return {**metadata["rows"], **total, "by": by}


def one_sided_verdicts(rows: Mapping[str, Any]) -> str | None:
    """Return why these rows can't be trained on, if all have one verdict."""
    good, bad = (rows[name] for name in VERDICTS)
    if good and bad:
        return None
    if good:
        says = "learns good answers by what sets them apart from bad ones; good ones alone are for an sft stage"
    else:
        says = "with bad answers alone only makes all answers unlikely"
    return (
        f"all {good + bad:,} answers that would be trained on are {'desirable' if good else 'undesirable'}: a "
        f"preference stage {says}. Expected both; look at the label (`columns: {{label: ...}}` maps another column) "
        "and at what was dropped"
    )


def one_sided_modes(rows: Mapping[str, Any]) -> list[str]:
    """Return the modes all of whose answers have one verdict, in words: the mode itself is then learned.

    Empty if one mode is all there is, or the whole is one-sided.
    """
    modes: dict[str, list[int]] = {}
    for entry in rows.get("by", ()):
        counts = modes.setdefault(entry["mode"], [0, 0])
        for side, name in enumerate(VERDICTS):
            counts[side] += entry.get(name, 0)
    modes = {mode: counts for mode, counts in modes.items() if sum(counts)}
    whole = [sum(counts[side] for counts in modes.values()) for side in (0, 1)]
    if len(modes) < 2 or not all(whole):
        return []
    return [
        f"all {sum(counts):,} {mode} answers are {VERDICTS[counts[0] == 0]}"
        for mode, counts in modes.items()
        if not all(counts)
    ]
