"""Makes the quickstart's data: three families of problems with worked traces, a little chat, and test sets.

Every problem has a right answer that a program can check and that a small model can reach by short steps but not at
one glance. Training rows, preference pairs and test rows share no problem. Only the standard library is needed:

    python problems.py --out DIR --seed 0
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

MODES = ("think", "no_think")
CUPS = "ABCD"
# Letters that tokenizers keep as one token after a space; i and a are words and are left out.
ALPHABET = "bcdefghjklmnopqrstuvwxyz"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One question. `key` names it whatever the wording; `wrong_*` is the same work with a slip in one step."""

    family: str
    difficulty: int
    key: str
    question: str
    trace: str
    answer: str
    wrong_trace: str
    wrong_answer: str


def sums(rng: random.Random, terms: int) -> Problem:
    """Adds a list of numbers from left to right: `7+12=19`."""
    numbers = [rng.randint(2, 19) for _ in range(terms)]
    slip_at, slip = rng.randrange(1, terms), rng.choice((-10, -1, 1, 10))
    right, total = _add(numbers, slips={})
    wrong, wrong_total = _add(numbers, slips={slip_at: slip})
    listed = ", ".join(map(str, numbers))
    question = rng.choice((f"Add these numbers: {listed}.", f"What is the sum of {listed}?"))
    return Problem(
        family="sums",
        difficulty=terms,
        key=" ".join(map(str, sorted(numbers))),
        question=question,
        trace="\n".join(right),
        answer=str(total),
        wrong_trace="\n".join(wrong),
        wrong_answer=str(wrong_total),
    )


def _add(numbers: Sequence[int], *, slips: dict[int, int]) -> tuple[list[str], int]:
    steps, total = [], numbers[0]
    for place, number in enumerate(numbers[1:], start=1):
        result = total + number + slips.get(place, 0)
        steps.append(f"{total}+{number}={result}")
        total = result
    return steps, total


def cups(rng: random.Random, swaps: int) -> Problem:
    """Follows a ball under one of four cups while pairs of cups are swapped: `A-C: C`."""
    start = rng.choice(CUPS)
    pairs = ["".join(rng.sample(CUPS, 2)) for _ in range(swaps)]
    slip_at = rng.randrange(swaps)
    right, end = _follow(start, pairs, slip_at=None)
    wrong, wrong_end = _follow(start, pairs, slip_at=slip_at)
    listed = ", ".join(f"{a}-{b}" for a, b in pairs)
    question = rng.choice(
        (
            f"A ball is under cup {start}. Cups are swapped: {listed}. Where is the ball?",
            f"The ball starts under {start}. Swaps: {listed}. Which cup has it now?",
        )
    )
    return Problem(
        family="cups",
        difficulty=swaps,
        key=f"{start} {listed}",
        question=question,
        trace="\n".join(right),
        answer=end,
        wrong_trace="\n".join(wrong),
        wrong_answer=wrong_end,
    )


def _follow(start: str, pairs: Sequence[str], *, slip_at: int | None) -> tuple[list[str], str]:
    steps, cup = [], start
    for place, (a, b) in enumerate(pairs):
        moved = {a: b, b: a}.get(cup, cup)
        if place == slip_at:
            # Swap taken when it should not be, or missed when it should: never the right cup.
            moved = cup if moved != cup else b
        steps.append(f"{a}-{b}: {moved}")
        cup = moved
    return steps, cup


def letters(rng: random.Random, length: int) -> Problem:
    """Counts one letter in a spelled-out string, with the count so far after each letter: `b0 k1`."""
    target = rng.choice(ALPHABET)
    others = ALPHABET.replace(target, "")
    # Drawing the count first keeps the answers spread out, so that guessing the usual one does not pay.
    count = rng.randint(1, length // 2)
    string = [target] * count + [rng.choice(others) for _ in range(length - count)]
    rng.shuffle(string)
    slip_at = rng.randrange(length)
    right, total = _count(string, target, slip_at=None)
    wrong, wrong_total = _count(string, target, slip_at=slip_at)
    spelled = " ".join(string)
    question = rng.choice(
        (f"How many times is {target} in: {spelled}", f"Count the letter {target} here: {spelled}")
    )
    return Problem(
        family="letters",
        difficulty=length,
        key=f"{target} {spelled}",
        question=question,
        trace=" ".join(right),
        answer=str(total),
        wrong_trace=" ".join(wrong),
        wrong_answer=str(wrong_total),
    )


def _count(string: Sequence[str], target: str, *, slip_at: int | None) -> tuple[list[str], int]:
    steps, count = [], 0
    for place, letter in enumerate(string):
        count += (letter == target) != (place == slip_at)
        steps.append(f"{letter}{count}")
    return steps, count


# Family -> how to make one problem, and its difficulties from easy to hard.
FAMILIES: dict[str, tuple[Callable[[random.Random, int], Problem], tuple[int, ...]]] = {
    "sums": (sums, (4, 6, 8)),
    "cups": (cups, (3, 5, 7)),
    "letters": (letters, (8, 12, 16)),
}


def distinct(family: str, seed: str) -> Iterator[Problem]:
    """Problems of one family without end, difficulties in turn, none twice whatever its wording."""
    make, difficulties = FAMILIES[family]
    rng = random.Random(f"{seed}/{family}")
    seen: set[str] = set()
    for difficulty in cycle(difficulties):
        problem = make(rng, difficulty)
        while problem.key in seen:
            problem = make(rng, difficulty)
        seen.add(problem.key)
        yield problem
