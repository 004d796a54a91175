"""The traces stage: `dualign traces RECIPE` lets a model think about rows without traces, into traces.jsonl.

    question -> tries -> whole? -> right? -> length? -> a row of think mode, with where it came from

A verifier compares each answer with the row's own, or a judge says whether it will do. Rows that got no trace stay no_think rows, or
are left out; both are counted by reason.
"""

import gc
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dualign.data.questions import Question
from dualign.errors import DataError
from dualign.evaluation.scores import short_label
from dualign.generation.answers import Responder
from dualign.generation.responders import CheckpointResponder
from dualign.models.origin import model_origin
from dualign.rundir import Outcome, summarize_outcomes
from dualign.sft.config import TracesStage
from dualign.sft.questions import trace_questions
from dualign.sft.tries import REASONS, Thinker, Try, plain_row, think_row

_QUANTILES = {"p10": 10, "median": 50, "p90": 90, "max": 100}


@dataclass(kw_only=True, slots=True)
class _Asked:
    """A question with its tries so far."""

    question: Question
    tries: list[Try] = field(default_factory=list)

    @property
    def right(self) -> list[Try]:
        return [attempt for attempt in self.tries if not attempt.reason]

    @property
    def reason(self) -> str:
        """Why there is no trace: what stopped the try that came furthest, or that it wasn't asked."""
        if self.question.passed:
            return self.question.passed
        return max((attempt.reason for attempt in self.tries), key=REASONS.index)


def run(stage: TracesStage, work: Path, *, seed: int) -> Outcome:
    """Ask, judge, write; answers already in `work` aren't asked again.

    Raises:
        DataError: no row got a trace.
    """
    questions, sources = trace_questions(stage, seed=seed)
    thinker = Thinker(stage, work, seed=seed)
    asked = [_Asked(question=thinker.askable(question)) for question in questions]
    for numbers in _rounds(stage):
        waiting = [item for item in asked if not item.question.passed and not item.right]
        outcomes = thinker.tries([item.question for item in waiting], numbers)
        for item, tries in zip(waiting, outcomes, strict=True):
            item.tries += tries
    asked_of, origin = thinker.responder.record(), _origin(thinker.responder)
    judged = thinker.approval.record()
    del thinker
    gc.collect()  # a model and its cache form reference cycles; the next stage needs the room
    chosen = [_chosen(stage, item) for item in asked]
    if not any(chosen):
        reasons = dict(Counter(item.reason for item in asked))
        raise DataError(f"stage {stage.name}: no trace came of {len(asked)} rows: {reasons}")
    rows = _rows_of(stage, asked, chosen)
    written: Counter[str] = Counter()
    with (work / "traces.jsonl").open("w", encoding="utf-8") as file:
        for item, tries in zip(asked, chosen, strict=True):
            for row in _written(stage, item, tries, origin):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written[row["mode"]] += 1
    metrics = _metrics(asked, chosen, written, origin) | judged
    if asked_of is not None:
        metrics["endpoints"] = {origin["model"]: asked_of}
    return Outcome(metrics=metrics, rows=rows, data=sources)


def _origin(responder: Responder) -> dict[str, str]:
    """Return what the model is, for the rows that it writes."""
    if isinstance(responder, CheckpointResponder):
        return model_origin(responder.model)
    record = responder.record() or {}
    return {"model": str(record.get("name")), "endpoint": str(record.get("url"))}


def _rounds(stage: TracesStage) -> list[list[int]]:
    """Return the numbers of the tries that are asked together.

    `random` stops asking a row at its first right try: tries are drawn alike, so the first right one
    is a random one of them.
    """
    numbers = list(range(stage.tries))
    return [[number] for number in numbers] if stage.choose == "random" else [numbers]


def _chosen(stage: TracesStage, item: _Asked) -> list[Try]:
    """Return the tries that become rows."""
    if stage.choose == "all":
        return list({attempt.trace: attempt for attempt in reversed(item.right)}.values())[::-1]
    if stage.choose == "shortest":
        return sorted(item.right, key=lambda attempt: (attempt.tokens, attempt.number))[:1]
    return item.right[:1]


def _written(
    stage: TracesStage, item: _Asked, chosen: Sequence[Try], origin: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the rows that come of a row."""
    question = item.question
    for attempt in chosen:
        row = think_row(stage, question, attempt.trace, attempt.answer)
        yield {**row, "provenance": _provenance(stage, item, attempt, origin)}
    if (chosen and stage.both_modes) or question.passed == "has_trace":
        yield {**plain_row(question), "provenance": _place(question)}
    elif not chosen and _is_kept(stage, item):
        place = _place(question) | {"without_trace": item.reason, "tries": len(item.tries)}
        yield {**plain_row(question), "provenance": place}


def _is_kept(stage: TracesStage, item: _Asked) -> bool:
    """Return whether a row without a new trace is written."""
    if item.question.conversation is None:
        return False
    return item.question.passed == "has_trace" or stage.without_trace == "no_think"


def _place(question: Question) -> dict[str, Any]:
    return {"source": question.source, "row": question.row}


def _provenance(
    stage: TracesStage, item: _Asked, attempt: Try, origin: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        **_place(item.question),
        **origin,
        "trace": stage.trace,
        "answer": stage.answer,
        "answer_first": stage.answer_first,
        **({} if stage.judge is None else {"judge": short_label(stage.judge.label)}),
        "temperature": stage.temperature,
        "top_p": stage.top_p,
        "max_new_tokens": stage.max_new_tokens,
        "try": attempt.number + 1,
        "tries": len(item.tries),
        "right": len(item.right),
        "trace_tokens": attempt.tokens,
    }


def _rows_of(
    stage: TracesStage, asked: Sequence[_Asked], chosen: Sequence[Sequence[Try]]
) -> dict[str, Any]:
    """Return ROWS of run.json: a row is one of a source, kept if anything of it is written."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for item, tries in zip(asked, chosen, strict=True):
        key = (item.question.source, "think" if tries else item.question.mode)
        kept = bool(tries) or _is_kept(stage, item)
        counts.setdefault(key, Counter())["kept" if kept else item.reason] += 1
    return summarize_outcomes(counts)


def _metrics(
    asked: Sequence[_Asked],
    chosen: Sequence[Sequence[Try]],
    written: Mapping[str, int],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    tries = [attempt for item in asked for attempt in item.tries]
    tokens = [attempt.tokens for attempts in chosen for attempt in attempts]
    without = (item for item, attempts in zip(asked, chosen, strict=True) if not attempts)
    return {
        "questions": len(asked),
        "think_rows": written.get("think", 0),
        "no_think_rows": written.get("no_think", 0),
        "without_trace": _counted(item.reason for item in without),
        "tries": len(tries),
        "rejected": _counted(attempt.reason for attempt in tries if attempt.reason),
        "trace_tokens": {
            name: round(float(np.percentile(tokens, percent)))
            for name, percent in _QUANTILES.items()
        },
        "model": dict(origin),
    }


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())
