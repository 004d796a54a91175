"""What an experiment found, as sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.evaluation.scores import Change, change_text
from dualign.report.key_figures import duration

Entry = Mapping[str, Any]
_MAX_NAMED = 4


def sentences(record: Entry) -> list[str]:
    """Return the conclusions of an experiment, none of them fixed."""
    return [*_best(record), *_against_parent(record), *_others(record), *_ends(record)]


def _best(record: Entry) -> Iterator[str]:
    if record["best"] is None:
        yield "No run finished."
        return
    entry = record["runs"][record["best"]]
    setting = next(s for s in record["settings"] if record["best"] in s["runs"])
    way = "lowest" if record["lower_is_better"] else "highest"
    text = f"Best by {record['score']} ({way}): {entry['label']}, with {entry['value']:.4g}"
    if setting["seeds"] > 1:
        spread = f", standard deviation {setting['spread']:.2g}" if setting["spread"] else ""
        text += (
            f". Settings are ranked by the mean of their seeds: {setting['value']:.4g} of "
            f"{setting['seeds']}{spread}"
        )
    yield f"{text}."


def _against_parent(record: Entry) -> Iterator[str]:
    if record["best"] is None:
        return
    parts = [
        f"{mode} {change_text(_change(cell))} points, {cell['won']} problems won and {cell['lost']} lost"
        for mode, cell in record["runs"][record["best"]]["against_parent"].items()
    ]
    if parts:
        yield f"The best run against {record['parent']} on the same problems: {'; '.join(parts)}."
    elif any(entry["modes"] for entry in record["runs"]):
        yield (
            f"No win against the parent is known: {record['parent'] or 'the start model'} isn't "
            "among the models of the eval stage."
        )


def _others(record: Entry) -> Iterator[str]:
    """Name the runs whose accuracy may equal the best run's in both modes."""
    compared = [entry for entry in record["runs"] if entry["against_best"]]
    if not compared:
        return
    alike = [
        entry["label"]
        for entry in compared
        if not any(_change(cell).measurable for cell in entry["against_best"].values())
    ]
    if not alike:
        yield "Its accuracy differs measurably from every other finished run's, in one mode at least."
        return
    more = f" and {len(alike) - _MAX_NAMED} more" if len(alike) > _MAX_NAMED else ""
    names = f"any of the other {len(alike)}" if len(alike) == len(compared) > 1 else ""
    names = names or "; ".join(alike[:_MAX_NAMED]) + more
    yield f"By accuracy not distinguishable from {names} on these problems (paired 95 % intervals)."


def _ends(record: Entry) -> Iterator[str]:
    entries: Sequence[Entry] = record["runs"]
    for state, words in (("stopped", "stopped early"), ("failed", "failed")):
        count = sum(entry["state"].startswith(state) for entry in entries)
        if count:
            yield f"{count} of {len(entries)} runs {words}."
    finished = sum(entry["state"] == "finished" for entry in entries)
    if finished > 1:
        yield (
            f"The best was chosen among {finished} by this score, so its score here flatters it: "
            "evaluate it on other problems."
        )
    yield f"All stages together took {duration(record['seconds'])}."


def _change(cell: Entry) -> Change:
    return Change.of(cell["value"], cell["ci"])
