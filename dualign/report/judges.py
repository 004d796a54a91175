"""What judges said in the stages that asked one: the record of `dualign/judges`, as a table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.evaluation.scores import short_label
from dualign.judges.base import share_words
from dualign.report.blocks import Section, Table
from dualign.report.runs import StageRun

_SHARES = {
    "consistent": "both orders agree",
    "first_place": "the first place is preferred",
    "agreement": "judge and verifier agree",
}
_COUNTS = {
    "asked": "judgments",
    "unreadable": "unreadable",
    "cut": "cut by the limit",
    "failed": "failed",
}


def judge_sections(stages: Sequence[StageRun]) -> Iterator[Section]:
    """Yield a section with a table for each stage that had a judge."""
    judged = [stage for stage in stages if (stage.record.get("metrics") or {}).get("judge")]
    if judged:
        yield Section(name="judges", title="Judges", blocks=tuple(map(_table, judged)))


def _table(stage: StageRun) -> Table:
    record = stage.record["metrics"]["judge"]
    return Table(
        columns=("", "judge"),
        rows=tuple(_rows(record)),
        caption=f"{stage.name}: judged by {short_label(record['model'])} ({record['kind']})",
    )


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((words, f"{record[key]:,}") for key, words in _COUNTS.items() if record.get(key))
    for name, count in (record.get("comparisons") or {}).items():
        yield f"comparisons: {name}", f"{count:,}"
    yield from (
        (words, share_words(record[key])) for key, words in _SHARES.items() if key in record
    )
    for key in ("mean_score", "lowest", "highest"):
        if record.get(key) is not None:
            yield key.replace("_", " "), f"{record[key]:.3f}"
    if record.get("too_long"):
        yield "longer than the model reads", f"{record['too_long']:,}"
