"""The sample answers that the report shows, shortened."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dualign.data.conversation import MODES
from dualign.evaluation.sampled import has_value
from dualign.evaluation.scores import short_label, task_names
from dualign.report.blocks import Block, ModeAnswer, Paragraph, Section, SideBySide
from dualign.report.conclusions import Evaluated
from dualign.report.runs import Row

MAX_CHARACTERS = 1600
_SAMPLES_PER_TASK, _SAMPLES = 4, 24
# Outcomes in turn: problems on which the modes differ come first, then failures of both.
_ORDER = ("only think right", "both wrong", "only no_think right", "both right")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleChoice:
    """The problems shown of a task, and the number of problems with each outcome."""

    outcomes: Mapping[str, int]
    shown: tuple[SideBySide, ...]


def sample_sections(evaluated: Evaluated) -> Iterator[Section]:
    """Yield answers of the last model, the same problem in both modes."""
    model = evaluated.models[-1]
    with_metrics = [stage for stage in evaluated.stages if stage.metrics is not None]
    seed = int(with_metrics[-1].record.get("seed") or 0) if with_metrics else 0
    blocks: list[Block] = []
    tasks = task_names((model.scores,))
    count = max(1, min(_SAMPLES_PER_TASK, _SAMPLES // max(1, len(tasks))))
    for task in tasks:
        choice = choose(model.samples, task=task, count=count, seed=seed)
        if choice is not None:
            counts = ", ".join(f"{outcome} {n}" for outcome, n in choice.outcomes.items())
            blocks += [
                Paragraph(text=f"{task}: of {sum(choice.outcomes.values())} problems, {counts}."),
                *choice.shown,
            ]
    if blocks:
        note = (
            f"Answers of {short_label(model.scores.model)}, the same problem in both modes. Chosen "
            f"by seed {seed}, by turns from each outcome, so that failures are seen; the counts "
            "say how common each outcome is."
        )
        yield Section(
            name="samples",
            title="Sample answers",
            blocks=(Paragraph(text=note, quiet=True), *blocks),
        )


def choose(samples: Sequence[Row], *, task: str, count: int, seed: int) -> SampleChoice | None:
    """Choose up to `count` problems that were asked in both modes; None if there are none, or no
    answer is right or wrong.

    The outcomes take turns, so that failures are shown even if they are rare.
    """
    pairs = _paired([row for row in samples if row.get("task") == task and has_value(row)])
    if not pairs:
        return None
    groups: dict[str, list[dict[str, Row]]] = {outcome: [] for outcome in _ORDER}
    for pair in pairs:
        groups[_outcome(pair)].append(pair)
    outcomes = {outcome: len(group) for outcome, group in groups.items()}
    shuffle = random.Random(f"{seed}:{task}")
    for group in groups.values():
        shuffle.shuffle(group)
    chosen: list[dict[str, Row]] = []
    while len(chosen) < min(count, len(pairs)):
        chosen += [group.pop() for group in groups.values() if group]
    shown = tuple(_side_by_side(pair) for pair in chosen[:count])
    return SampleChoice(outcomes=outcomes, shown=shown)


def _paired(samples: Sequence[Row]) -> list[dict[str, Row]]:
    """Return the first generation of each problem in each mode, if it was asked in both."""
    by_id: dict[str, dict[str, Row]] = {}
    for row in samples:
        by_id.setdefault(str(row.get("id")), {}).setdefault(str(row.get("mode")), row)
    return [pair for pair in by_id.values() if all(mode in pair for mode in MODES)]


def _outcome(pair: Mapping[str, Row]) -> str:
    match bool(pair["think"].get("correct")), bool(pair["no_think"].get("correct")):
        case True, False:
            return "only think right"
        case False, True:
            return "only no_think right"
        case True, True:
            return "both right"
        case _:
            return "both wrong"


def _side_by_side(pair: Mapping[str, Row]) -> SideBySide:
    row = pair["think"]
    return SideBySide(
        title=f"{row.get('task')}, problem {row.get('id')}: {_outcome(pair)}",
        problem=shortened(plain(row.get("prompt"))),
        expected=plain(row.get("expected")),
        think=mode_answer(pair["think"]),
        no_think=mode_answer(pair["no_think"]),
    )


def mode_label(row: Row) -> str:
    """Return the mode of an answer, with the budget at which its trace was closed."""
    budget = row.get("budget")
    return str(row.get("mode")) + ("" if budget is None else f", budget {budget}")


def mode_answer(row: Row, limit: int = MAX_CHARACTERS) -> ModeAnswer:
    """Return an answer of samples.jsonl as a block, its texts shortened."""
    return ModeAnswer(
        thinking=shortened(plain(row.get("thinking")), limit),
        answer=shortened(plain(row.get("answer")), limit),
        correct=row.get("correct"),
        note=", ".join([*token_counts(row), *faults(row)]),
    )


def token_counts(row: Row) -> list[str]:
    """Return how long an answer is, in words."""
    return [
        f"{row[key]} {words} tokens"
        for key, words in (("think_tokens", "thinking"), ("answer_tokens", "answer"))
        if row.get(key) is not None
    ]


def faults(row: Row) -> Iterator[str]:
    """Yield the faults of an answer's form, as the evaluation recorded them."""
    if row.get("leaked"):
        yield "think tag where none belongs"
    if row.get("mode") == "think" and row.get("closed") is False:
        yield "think block not closed"
    if row.get("finished") is False:
        yield "cut at the token limit"


def plain(value: object) -> str:
    """Return a foreign value as text: a chat as its turns, other values as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(turn, dict) and "content" in turn for turn in value
    ):
        return "\n".join(f"{turn.get('role', '')}: {turn['content']}" for turn in value)
    return json.dumps(value, ensure_ascii=False)


def shortened(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a long text with its middle left out, and a note of how much that was."""
    left_out = len(text) - limit
    if left_out <= 0:
        return text
    half = limit // 2
    note = f"[... {left_out} characters left out; samples.jsonl has them ...]"
    return f"{text[:half]}\n{note}\n{text[-half:]}"
