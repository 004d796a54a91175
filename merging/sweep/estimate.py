"""Candidates and cost of a sweep, without running it: `dualign sweep --dry-run`."""

from pathlib import Path
from statistics import fmean
from typing import Any

from dualign.checkpoints.shards import cpu_count, tensor_specs
from dualign.errors import MergeError
from dualign.evaluation.config import limit_of, samples_of
from dualign.merging.estimate import seconds_per_element
from dualign.merging.merge import PreparedMerge, prepare
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.points import SOUP, Point, merge_at
from dualign.merging.sweep.result import point_label
from dualign.merging.sweep.score_cache import ScoreCache
from dualign.merging.sweep.scoring import LiveScorer, Scorer, make_scorer
from dualign.merging.sweep.search import grid_points, max_evaluations


def estimate(stage: SweepStage, work: Path, *, seed: int) -> str:
    """Return a table of candidates, reads, questions, known scores, and time if it was measured.

    Every merge of a grid is planned and checked. Nothing is written.
    """
    cache = ScoreCache.beside(work)
    scorer = make_scorer(stage, work, cache, seed=seed)
    rows = cache.read()
    points = grid_points(stage) if stage.search == "grid" else []
    first = prepare(
        merge_at(stage.merge, (points or [_any_point(stage)])[0], stage.name), seed=seed
    )
    known = [_key(stage, point, scorer, seed) in rows for point in points]
    count = max_evaluations(stage)
    at_most = "" if stage.search == "grid" else "at most "
    lines = [
        f"search      {stage.search}: {at_most}{count} candidate{'s' if count != 1 else ''}",
        *_merge_lines(first),
        *_score_lines(stage, scorer),
        f"known       {sum(known)} of {count}, from {cache.scores}" if points else "",
        f"time        {_time(rows, count - sum(known))}",
        *(
            f"{i + 1:4}  {point_label(stage, point)}{'  (known)' if cached else ''}"
            for i, (point, cached) in enumerate(zip(points, known, strict=True))
        ),
    ]
    return "\n".join(line for line in lines if line)


def _any_point(stage: SweepStage) -> Point:
    """Return a point of the search; for a greedy soup all models."""
    if stage.search == "greedy_soup":
        return {SOUP: tuple(range(len(stage.models)))}
    return stage.first_point()


def _key(stage: SweepStage, point: Point, scorer: Scorer, seed: int) -> str:
    """Return the key of a point's score; empty if it can't be merged, which the sweep reports."""
    try:
        return scorer.key(prepare(merge_at(stage.merge, point, stage.name), seed=seed))
    except MergeError:
        return ""


def _merge_lines(prepared: PreparedMerge) -> list[str]:
    weights = prepared.weights
    read = sum(file.stat().st_size for file in weights.files)
    written = sum(tensor.nbytes for tensor in tensor_specs(weights, prepared.merge.dtype))
    elements = sum(entry.size for entry in weights.entries.values())
    seconds = elements * seconds_per_element(prepared) / cpu_count()
    return [
        f"each        {prepared.merge.method} of {', '.join(prepared.models)}",
        f"            reads {read / 1e9:.2f} GB, about {max(seconds, 0.1):.1f} s to compute on warm files",
        f"writes      {written / 1e9:.2f} GB: the best one",
    ]


def _score_lines(stage: SweepStage, scorer: Scorer) -> list[str]:
    if not isinstance(scorer, LiveScorer):
        return [f"score       by the command, on each candidate's folder: {stage.command}"]
    asked = [
        (samples_of(problem, scorer.config, mode), limit_of(task, scorer.config, mode))
        for task, problems in scorer.tasks
        for mode in ("think", "no_think")
        for problem in problems
    ]
    answers, tokens = sum(n for n, _ in asked), sum(n * limit for n, limit in asked)
    names = ", ".join(f"{task.name} ({len(problems)})" for task, problems in scorer.tasks)
    return [
        f"score       {stage.objective} on {names}, in both modes, by a model in memory",
        f"            {answers} answers a candidate, {tokens:,} new tokens at most",
    ]


def _time(rows: dict[str, dict[str, Any]], remaining: int) -> str:
    measured = [row["seconds"] for row in rows.values() if "seconds" in row]
    if not measured:
        return "known when a candidate has been scored; computing its weights is the small part"
    seconds = fmean(measured[-8:])
    return f"about {seconds:.0f} s a candidate, as measured before: {seconds * remaining / 60:.1f} min for {remaining}"
