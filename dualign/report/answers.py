"""The page of all answers, with filters: report/answers.html beside the report."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from dualign.data.conversation import MODES
from dualign.evaluation.sampled import has_value
from dualign.evaluation.scores import short_label
from dualign.report.blocks import AnswerBrowser, Report, Section
from dualign.report.runs import ModelEvaluation, Row
from dualign.report.samples import faults, mode_label, plain, shortened, token_counts

_MAX_BYTES = 3_000_000  # of the answers in a page
_TEXT_LIMITS = (6000, 1600, 500)  # characters of a text, the first at which all problems fit

_Entry = Mapping[str, Any]
Listed = tuple[str, str, str, Sequence[tuple[str, Row]]]
"""a problem to list: its task, its id, what happened to it, and its answers with their models"""


def answers_page(title: str, models: Sequence[ModelEvaluation]) -> Report | None:
    """Return the page of all answers of the models; None without any."""
    browser = browse(list(_by_problem(models)))
    if not browser.problems:
        return None
    answers = sum(len(problem["answers"]) for problem in browser.problems)
    facts = (("Problems", f"{len(browser.problems):,}"), ("Answers", f"{answers:,}"))
    sections = (Section(name="answers", title="Answers", blocks=(browser,)),)
    return Report(
        title=f"{title}: answers",
        facts=facts,
        sections=sections,
        pages=(("Report", "../report.html"),),
    )


def browse(listed: Sequence[Listed], *, max_bytes: int = _MAX_BYTES) -> AnswerBrowser:
    """Return the problems as a block of a page; texts are shortened, then problems drawn, until they fit."""
    for limit in _TEXT_LIMITS:
        entries = list(_fitting((_entry(problem, limit) for problem in listed), max_bytes))
        if len(entries) == len(listed):
            note = "" if limit == _TEXT_LIMITS[0] else _shortened_note(limit)
            return AnswerBrowser(problems=tuple(entries), note=note)
    places = _in_turns(listed)
    shortest = (_entry(listed[place], _TEXT_LIMITS[-1]) for place in places)
    drawn = sorted(
        zip(places, _fitting(shortest, max_bytes), strict=False), key=lambda item: item[0]
    )
    note = (
        f"{len(drawn):,} of {len(listed):,} problems are here, drawn by chance and by turns from each "
        f"task, so that the page stays small. {_shortened_note(_TEXT_LIMITS[-1])}"
    )
    return AnswerBrowser(problems=tuple(entry for _, entry in drawn), note=note)


def _fitting(entries: Iterable[_Entry], max_bytes: int) -> Iterator[_Entry]:
    """Yield the entries until the next doesn't fit."""
    left = max_bytes
    for entry in entries:
        left -= len(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace"))
        if left < 0:
            return
        yield entry


def _in_turns(listed: Sequence[Listed]) -> list[int]:
    """Return the places of the problems in chance order: one of each task and kind in turn."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, (task, _, kind, _) in enumerate(listed):
        groups[f"{task}:{kind}"].append(place)
    for name, places in groups.items():
        random.Random(name).shuffle(places)
    rounds = zip_longest(*groups.values())
    return [place for turn in rounds for place in turn if place is not None]


def _shortened_note(limit: int) -> str:
    return (
        f"Texts of more than {limit:,} characters are without their middle; samples.jsonl has all."
    )


def _by_problem(models: Sequence[ModelEvaluation]) -> Iterator[Listed]:
    """Yield each problem once, with the answers of all models in both modes, by task."""
    listed: dict[tuple[str, str, str], list[tuple[str, Row]]] = {}
    for model in models:
        for row in (*model.samples, *model.budgeted):
            # Rows that stages asked otherwise under the same id are problems of their own.
            key = str(row.get("task")), str(row.get("id")), plain(row.get("prompt"))
            listed.setdefault(key, []).append((short_label(model.scores.model), row))
    order = {task: place for place, task in enumerate(dict.fromkeys(task for task, _, _ in listed))}
    for task, number, prompt in sorted(listed, key=lambda key: order[key[0]]):
        yield task, number, "", sorted(listed[task, number, prompt], key=_place_of_mode(models))


def _place_of_mode(
    models: Sequence[ModelEvaluation],
) -> Callable[[tuple[str, Row]], tuple[int, int]]:
    """Return a key that puts the answers of a model together, think before no_think."""
    places = {short_label(model.scores.model): place for place, model in enumerate(models)}
    modes: list[Any] = [*MODES]
    return lambda answer: (
        places[answer[0]],
        modes.index(mode) if (mode := answer[1].get("mode")) in modes else len(modes),
    )


def _entry(problem: Listed, limit: int) -> _Entry:
    task, number, kind, answers = problem
    row = answers[0][1]
    return {
        "task": task,
        "id": number,
        "kind": kind,
        "prompt": shortened(plain(row.get("prompt")), limit),
        "expected": shortened(plain(row.get("expected")), limit),
        "answers": [_answer(model, of_model, limit) for model, of_model in answers],
    }


def _answer(model: str, row: Row, limit: int) -> _Entry:
    number = [f"sample {row['sample'] + 1}"] if isinstance(row.get("sample"), int) else []
    correct, reason = row.get("correct"), row.get("reason")
    score = [f"score {row['score']:.3g}"] if isinstance(row.get("score"), int | float) else []
    why = [str(reason)] if reason and not correct else []
    return {
        "model": model,
        "mode": mode_label(row),
        "right": bool(correct) if correct is not None and has_value(row) else None,
        "thinking": shortened(plain(row.get("thinking")), limit),
        "answer": shortened(plain(row.get("answer")), limit),
        "note": ", ".join([*number, *token_counts(row), *score, *why, *faults(row)]),
        "flags": list(_flags(row)),
    }


def _flags(row: Row) -> Iterator[str]:
    """Yield the faults of form by which answers are filtered."""
    if row.get("leaked"):
        yield "leaked"
    if row.get("cut_in_think"):
        yield "cut while thinking"
    if row.get("finished") is False:
        yield "cut at the token limit"
    if row.get("mode") == "think" and row.get("closed") is False:
        yield "think block not closed"
