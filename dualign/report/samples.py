"""Which answers the report shows, and how it cuts them."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dualign.data.conversation import MODES
from dualign.report.blocks import Answer, SideBySide
from dualign.report.runs import Row

MAX_CHARACTERS = 1600
# Where the modes differ comes first, and a failure of both is among the first two if there is one.
ORDER = ("only think right", "both wrong", "only no_think right", "both right")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The problems shown of one task, and how many of each outcome there were to choose from."""

    outcomes: Mapping[str, int]
    shown: tuple[SideBySide, ...]


def choose(samples: Sequence[Row], *, task: str, count: int, seed: int) -> Choice | None:
    """Up to `count` problems that were put to the model in both modes; None where there is none."""
    pairs = _paired([row for row in samples if row.get("task") == task])
    if not pairs:
        return None
    groups: dict[str, list[dict[str, Row]]] = {outcome: [] for outcome in ORDER}
    for pair in pairs:
        groups[_outcome(pair)].append(pair)
    outcomes = {outcome: len(group) for outcome, group in groups.items()}
    shuffle = random.Random(f"{seed}:{task}")
    for group in groups.values():
        shuffle.shuffle(group)
    picked: list[dict[str, Row]] = []
    while len(picked) < min(count, len(pairs)):
        picked += [group.pop() for group in groups.values() if group]
    return Choice(outcomes=outcomes, shown=tuple(_shown(pair) for pair in picked[:count]))


def _paired(samples: Sequence[Row]) -> list[dict[str, Row]]:
    """The first generation of each problem in each mode, for problems that have both."""
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


def _shown(pair: Mapping[str, Row]) -> SideBySide:
    row = pair["think"]
    return SideBySide(
        title=f"{row.get('task')}, problem {row.get('id')}: {_outcome(pair)}",
        problem=shortened(plain(row.get("prompt"))),
        expected=plain(row.get("expected")),
        think=_answer(pair["think"]),
        no_think=_answer(pair["no_think"]),
    )


def _answer(row: Row) -> Answer:
    tokens = [
        f"{row[key]} {words} tokens"
        for key, words in (("think_tokens", "thinking"), ("answer_tokens", "answer"))
        if row.get(key) is not None
    ]
    return Answer(
        thinking=shortened(plain(row.get("thinking"))),
        answer=shortened(plain(row.get("answer"))),
        correct=row.get("correct"),
        note=", ".join([*tokens, *_faults(row)]),
    )


def _faults(row: Row) -> Iterator[str]:
    """What is wrong with an answer's form, as the evaluation saw it."""
    if row.get("leaked"):
        yield "think tag where none belongs"
    if row.get("mode") == "think" and row.get("closed") is False:
        yield "think block not closed"
    if row.get("finished") is False:
        yield "cut at the token limit"


def plain(value: object) -> str:
    """A foreign value as text: a chat as its turns, anything else but a string as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(turn, dict) and "content" in turn for turn in value
    ):
        return "\n".join(f"{turn.get('role', '')}: {turn['content']}" for turn in value)
    return json.dumps(value, ensure_ascii=False)


def shortened(text: str) -> str:
    """Text with its middle left out, and how much that was, where it is too long to read."""
    left_out = len(text) - MAX_CHARACTERS
    if left_out <= 0:
        return text
    half = MAX_CHARACTERS // 2
    note = f"[... {left_out} characters left out; samples.jsonl has them ...]"
    return f"{text[:half]}\n{note}\n{text[-half:]}"
