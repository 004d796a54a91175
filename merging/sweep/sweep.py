"""Sweeping: many merges of the same models are scored, and the best one is written.

    dualign sweep sweep.yaml OUT
    dualign run recipe.yaml              # as a stage

A candidate is never written to be evaluated: its weights go block by block into one model in memory. What was answered
is kept beside the run directory, so a sweep that was cut off, or a wider one, asks only what is new.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualign.errors import MergeError
from dualign.merging.merge import prepare, write
from dualign.merging.sweep import result
from dualign.merging.sweep.config import SweepStage
from dualign.merging.sweep.points import Point, merge_at
from dualign.merging.sweep.score_cache import Memory, memory_of
from dualign.merging.sweep.scored import Candidate, winner
from dualign.merging.sweep.scoring import LiveScoring, Scoring, scoring_of
from dualign.merging.sweep.search import UNUSABLE, Found, most, start
from dualign.report.sweep import pictures, sweep_markdown, terminal_table
from dualign.rundir import Outcome, write_json
from dualign.terminal import wide_console

SWEEP_JSON = "sweep.json"


def run(stage: SweepStage, work: Path, *, seed: int) -> Outcome:
    """The best merge as a model folder in `work`, with sweep.json, table.md and plots.

    Raises:
        MergeError: the models can't be merged at any point.
        EvaluationError: a task can't be used, or the command fails or prints no number.
    """
    problems = stage.problems()
    if problems:
        raise MergeError("\n".join(f"{stage.name}: {key}: {message}" for key, message in problems))
    work.mkdir(parents=True, exist_ok=True)
    memory = memory_of(work)
    scoring = scoring_of(stage, work, memory, seed=seed)
    try:
        candidates, found = explore(stage, scoring, memory, seed=seed)
    finally:
        scoring.close()
    best = winner(candidates, lowest=stage.best == "lowest")
    if best is None:
        raise MergeError(
            f"{stage.name}: none of the {len(candidates)} candidates can be merged; the first: {candidates[0].failed}"
        )
    prepared = prepare(merge_at(stage.merge, candidates[best].point, stage.name), seed=seed)
    record = write(prepared, work, seed=seed)
    summary = result.summary(stage, candidates, best, found)
    _leave(work, summary, scoring, candidates[best])
    kept = ("method", "dtype", "tensors", "bytes", "models", "parameters")
    return Outcome(
        metrics={**result.metrics(summary), **{key: record[key] for key in kept}},
        checks={key: record[key] for key in ("verified", "decided", "config_donor")},
        data=scoring.data,
    )


def explore(
    stage: SweepStage, scoring: Scoring, memory: Memory, *, seed: int
) -> tuple[list[Candidate], Found]:
    """Every candidate that the search asks for, in its order, and what the search found."""
    candidates: dict[str, Candidate] = {}
    sign = -1.0 if stage.best == "lowest" else 1.0
    search = start(stage, seed=seed)
    with tqdm(total=most(stage), desc=stage.name, unit="candidate", disable=None) as bar:

        def value(point: Point) -> float:
            key = json.dumps(point, sort_keys=True)
            if key not in candidates:
                one = _tried(stage, point, scoring, memory, seed=seed)
                _require_other_failure(one, list(candidates.values()))
                candidates[key] = one
                bar.update()
                bar.write(result.line(stage, one, number=len(candidates), of=bar.total))
            scored = candidates[key].scored
            return UNUSABLE if scored is None else sign * scored.value

        found = _driven(search, value)
    return list(candidates.values()), found


def _driven(search: Any, value: Callable[[Point], float]) -> Found:
    """Run the search to its end."""
    try:
        point = next(search)
        while True:
            point = search.send(value(point))
    except StopIteration as end:
        found: Found = end.value
        return found


def _tried(
    stage: SweepStage, point: Point, scoring: Scoring, memory: Memory, *, seed: int
) -> Candidate:
    clock = time.monotonic()
    key = ""
    try:
        prepared = prepare(merge_at(stage.merge, point, stage.name), seed=seed)
        key = scoring.key(prepared)
        scored, known = scoring.score(prepared, result.label(stage, point))
    except MergeError as error:
        return Candidate(point=point, key=key, scored=None, failed=str(error))
    seconds = round(time.monotonic() - clock, 2)
    if not known:
        memory.add({"key": key, "point": point, "value": scored.value, "seconds": seconds})
    return Candidate(point=point, key=key, scored=scored, cached=known, seconds=seconds)


def _require_other_failure(one: Candidate, earlier: list[Candidate]) -> None:
    """What two points fail at in the same words lies in the inputs, so the others would fail too."""
    if one.failed and any(one.failed == other.failed for other in earlier):
        raise MergeError(one.failed)


def _leave(work: Path, summary: dict[str, Any], scoring: Scoring, best: Candidate) -> None:
    """The files beside the weights, and the table in the terminal."""
    write_json(work / SWEEP_JSON, summary)
    (work / "table.md").write_text(sweep_markdown(summary), encoding="utf-8")
    for picture in pictures(summary):
        (work / f"{picture.name}.png").write_bytes(picture.png)
    if isinstance(scoring, LiveScoring):
        rows = scoring.samples[best.key]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (work / "samples.jsonl").write_text(text, encoding="utf-8")
    console = wide_console()
    console.print(terminal_table(summary))
    for sentence in summary["says"]:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
