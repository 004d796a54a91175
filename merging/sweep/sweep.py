"""Sweeping: many merges of the same models are scored, and the best one is written.

    dualign sweep sweep.yaml OUT
    dualign run recipe.yaml              # as a stage

A candidate isn't written to be evaluated: its weights go block by block into one model in memory.
Answers are kept beside the run directory, so a sweep that was interrupted, or a wider one, asks
only new questions.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualign.errors import MergeError
from dualign.merging.merge import RUN_CHECKS, RUN_METRICS, prepare, write
from dualign.merging.sweep.candidates import Candidate, winner
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.points import Point, merge_at
from dualign.merging.sweep.result import (
    point_label,
    progress_line,
    sweep_metrics,
    sweep_record,
)
from dualign.merging.sweep.score_cache import ScoreCache
from dualign.merging.sweep.scoring import LiveScorer, Scorer, make_scorer
from dualign.merging.sweep.search import (
    UNUSABLE,
    Search,
    SearchSummary,
    max_evaluations,
    start_search,
)
from dualign.report.sweep import pictures, sweep_markdown, terminal_table
from dualign.rundir import Outcome, write_json
from dualign.terminal import progress, wide_console

_SWEEP_JSON = "sweep.json"


def run(stage: SweepStage, work: Path, *, seed: int) -> Outcome:
    """Write the best merge as a model folder into `work`, with sweep.json, table.md and plots.

    Raises:
        MergeError: the models can't be merged at any point.
        EvaluationError: a task can't be used, or the command fails or prints no number.
    """
    problems = stage.problems()
    if problems:
        raise MergeError("\n".join(f"{stage.name}: {key}: {message}" for key, message in problems))
    work.mkdir(parents=True, exist_ok=True)
    cache = ScoreCache.beside(work)
    scorer = make_scorer(stage, work, cache, seed=seed)
    try:
        candidates, search = _explore(stage, scorer, cache, seed=seed)
    finally:
        scorer.close()
    best = winner(candidates, lowest=stage.best == "lowest")
    if best is None:
        raise MergeError(
            f"{stage.name}: none of the {len(candidates)} candidates can be merged; the first: {candidates[0].failure}"
        )
    prepared = prepare(merge_at(stage.merge, candidates[best].point, stage.name), seed=seed)
    merge_record = write(prepared, work, seed=seed)
    record = sweep_record(stage, candidates, best, search)
    _write_results(work, record, scorer, candidates[best])
    return Outcome(
        metrics={**sweep_metrics(record), **{key: merge_record[key] for key in RUN_METRICS}},
        checks={key: merge_record[key] for key in RUN_CHECKS},
        data=scorer.data,
    )


def _explore(
    stage: SweepStage, scorer: Scorer, cache: ScoreCache, *, seed: int
) -> tuple[list[Candidate], SearchSummary]:
    """Run the search; return its candidates in order, and its summary."""
    candidates: dict[str, Candidate] = {}
    sign = -1.0 if stage.best == "lowest" else 1.0
    total = max_evaluations(stage)
    with progress(total, stage.name, unit="candidate") as bar:

        def value(point: Point) -> float:
            key = json.dumps(point, sort_keys=True)
            if key not in candidates:
                candidate = _score(stage, point, scorer, cache, seed=seed)
                _require_new_failure(candidate, list(candidates.values()))
                candidates[key] = candidate
                bar.update()
                bar.write(progress_line(stage, candidate, number=len(candidates), total=total))
            score = candidates[key].score
            return UNUSABLE if score is None else sign * score.value

        summary = _run_search(start_search(stage, seed=seed), value)
    return list(candidates.values()), summary


def _run_search(search: Search, value: Callable[[Point], float]) -> SearchSummary:
    try:
        point = next(search)
        while True:
            point = search.send(value(point))
    except StopIteration as end:
        summary: SearchSummary = end.value
        return summary


def _score(
    stage: SweepStage, point: Point, scorer: Scorer, cache: ScoreCache, *, seed: int
) -> Candidate:
    clock = time.monotonic()
    key = ""
    try:
        prepared = prepare(merge_at(stage.merge, point, stage.name), seed=seed)
        key = scorer.key(prepared)
        score, cached = scorer.score(prepared, point_label(stage, point))
    except MergeError as error:
        return Candidate(point=point, key=key, score=None, failure=str(error))
    seconds = round(time.monotonic() - clock, 2)
    if not cached:
        cache.add({"key": key, "point": point, "value": score.value, "seconds": seconds})
    return Candidate(point=point, key=key, score=score, cached=cached, seconds=seconds)


def _require_new_failure(candidate: Candidate, earlier: list[Candidate]) -> None:
    """Stop if two points fail with the same message: the inputs are wrong, so all will fail."""
    if candidate.failure and any(candidate.failure == other.failure for other in earlier):
        raise MergeError(candidate.failure)


def _write_results(work: Path, record: dict[str, Any], scorer: Scorer, best: Candidate) -> None:
    """Write the files beside the weights, and print the table."""
    write_json(work / _SWEEP_JSON, record)
    (work / "table.md").write_text(sweep_markdown(record), encoding="utf-8")
    for picture in pictures(record):
        (work / f"{picture.name}.png").write_bytes(picture.png)
    if isinstance(scorer, LiveScorer):
        rows = scorer.samples[best.key]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (work / "samples.jsonl").write_text(text, encoding="utf-8")
    console = wide_console()
    console.print(terminal_table(record))
    for sentence in record["says"]:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
