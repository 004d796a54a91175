"""What a sweep will do and cost, without doing it: `dualign sweep --dry-run`."""

from pathlib import Path
from statistics import fmean
from typing import Any

from dualign.checkpoints.shards import cpu_count, tensor_specs
from dualign.errors import MergeError
from dualign.evaluation.requests import limit_of
from dualign.merging.estimate import seconds_per_element
from dualign.merging.merge import PreparedMerge, prepare
from dualign.merging.sweep import search
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.points import SOUP, merge_at
from dualign.merging.sweep.result import label
from dualign.merging.sweep.score_cache import memory_of
from dualign.merging.sweep.scoring import LiveScoring, Scoring, scoring_of


def estimate(stage: SweepStage, work: Path, *, seed: int) -> str:
    """Candidates, what each reads and is asked, what is known already, and the time as far as it was measured.

    Every merge of a grid is planned and checked. Nothing is written.
    """
    memory = memory_of(work)
    scoring = scoring_of(stage, work, memory, seed=seed)
    before = memory.read()
    points = search.points(stage) if stage.search == "grid" else []
    first = prepare(
        merge_at(stage.merge, (points or [first_point(stage)])[0], stage.name), seed=seed
    )
    known = [_key(stage, point, scoring, seed) in before for point in points]
    count = search.most(stage)
    at_most = "" if stage.search == "grid" else "at most "
    lines = [
        f"search      {stage.search}: {at_most}{count} candidate{'s' if count != 1 else ''}",
        *_merge_lines(first),
        *_score_lines(stage, scoring),
        f"known       {sum(known)} of {count}, from {memory.scores}" if points else "",
        f"time        {_time(before, count - sum(known))}",
        *(
            f"{place + 1:4}  {label(stage, point)}{'  (known)' if done else ''}"
            for place, (point, done) in enumerate(zip(points, known, strict=True))
        ),
    ]
    return "\n".join(line for line in lines if line)


def first_point(stage: SweepStage) -> Any:
    """Some point of the search; of a soup, all models."""
    if stage.search == "greedy_soup":
        return {SOUP: tuple(range(len(stage.models)))}
    return stage.first_point()


def _key(stage: SweepStage, point: Any, scoring: Scoring, seed: int) -> str:
    """Empty where the point can't be merged, which the sweep itself will tell."""
    try:
        return scoring.key(prepare(merge_at(stage.merge, point, stage.name), seed=seed))
    except MergeError:
        return ""


def _merge_lines(prepared: PreparedMerge) -> list[str]:
    weights = prepared.weights
    read = sum(file.stat().st_size for file in weights.files)
    written = sum(one.nbytes for one in tensor_specs(weights, prepared.merge.dtype))
    elements = sum(one.size for one in weights.entries.values())
    seconds = elements * seconds_per_element(prepared) / cpu_count()
    return [
        f"each        {prepared.merge.method} of {', '.join(prepared.models)}",
        f"            reads {read / 1e9:.2f} GB, about {max(seconds, 0.1):.1f} s to compute on warm files",
        f"writes      {written / 1e9:.2f} GB: the best one",
    ]


def _score_lines(stage: SweepStage, scoring: Scoring) -> list[str]:
    if not isinstance(scoring, LiveScoring):
        return [f"score       by the command, on each candidate's folder: {stage.command}"]
    settings = scoring.settings
    asked = [(task, len(problems)) for task, problems in scoring.asked]
    answers = 2 * sum(count for _, count in asked)
    tokens = sum(
        count * (limit_of(task, settings, "think") + limit_of(task, settings, "no_think"))
        for task, count in asked
    )
    names = ", ".join(f"{task.name} ({count})" for task, count in asked)
    return [
        f"score       {stage.objective} on {names}, in both modes, by a model in memory",
        f"            {answers} answers a candidate, {tokens:,} new tokens at most",
    ]


def _time(before: Any, left: int) -> str:
    measured = [row["seconds"] for row in before.values() if "seconds" in row]
    if not measured:
        return "known when a candidate has been scored; computing its weights is the small part"
    each = fmean(measured[-8:])
    return (
        f"about {each:.0f} s a candidate, as measured before: {each * left / 60:.1f} min for {left}"
    )
