"""Makes the quickstart's data: three families of problems with worked traces, a little chat, and test sets.

Every problem has a right answer that a program can check and that a small model can reach by short steps but not at
one glance. Training rows, preference pairs and test rows share no problem.

The teacher is a verbose one: three of four training traces go over the finished work once more, which adds tokens and
finds nothing. Half of the think pairs prefer the trace without that check; the others prefer right work to a slip, and
to work that stops a step too early, so that traces aren't shortened by leaving work out.

Only the standard library is needed:

    python problems.py --out DIR --seed 0
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

MODES = ("think", "no_think")
PLACES = "ABCDEFG"
BARE = 4  # every fourth training trace ends without a check
PREFERENCES = ("shorter", "right", "shorter", "complete")  # of think pairs, in turn
GOODS = ["apple", "pear", "plum", "fig", "nut", "egg", "bun", "tea", "jam", "pie"]

# So many repeats in a row mean that a family has run out of problems.
MOST_DRAWS = 1000

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One question. `key` names it whatever the wording; `check` goes over the work of `trace` once more; `wrong_*` is
    the same work with a slip in one step, `early_answer` what there is before the last step.
    """

    family: str
    difficulty: int
    key: str
    question: str
    trace: str
    check: str
    answer: str
    wrong_trace: str
    wrong_answer: str
    early_answer: str

    @property
    def checked_trace(self) -> str:
        return f"{self.trace}\ncheck: {self.check}"

    @property
    def early_trace(self) -> str:
        return self.trace.rpartition("\n")[0]


def sums(rng: random.Random, terms: int) -> Problem:
    """Adds a list of numbers from left to right: `4 + 2 = 6`, `6 + 7 = 13`; `check: 4 + 2 + 7 = 13`."""
    numbers = [rng.randint(1, 9) for _ in range(terms)]
    slip_at = rng.randrange(1, terms)
    slip = rng.choice((-2, -1, 1, 2))
    right, total = _add(numbers, slips={})
    wrong, wrong_total = _add(numbers, slips={slip_at: slip})
    return Problem(
        family="sums",
        difficulty=terms,
        key=" ".join(map(str, sorted(numbers))),
        question=f"Add these numbers: {', '.join(map(str, numbers))}",
        trace="\n".join(right),
        check=f"{' + '.join(map(str, numbers))} = {total}",
        answer=str(total),
        wrong_trace="\n".join(wrong),
        wrong_answer=str(wrong_total),
        early_answer=str(total - numbers[-1]),
    )


def _add(numbers: Sequence[int], *, slips: Mapping[int, int]) -> tuple[list[str], int]:
    steps, total = [], numbers[0]
    for place, number in enumerate(numbers[1:], start=1):
        result = total + number + slips.get(place, 0)
        steps.append(f"{total} + {number} = {result}")
        total = result
    return steps, total


def routes(rng: random.Random, hops: int) -> Problem:
    """Follows arrows between seven places: `1: A>F`, `2: F>C`; `check: A>F>C`."""
    ring = rng.sample(PLACES, len(PLACES))
    arrows = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    start = ring[0]
    slip_at, astray = rng.randrange(hops), rng.choice(ring[hops + 1 :])
    right, end = _hop(start, arrows, hops, slips={})
    wrong, wrong_end = _hop(start, arrows, hops, slips={slip_at: astray})
    listed = ", ".join(f"{a}>{arrows[a]}" for a in rng.sample(PLACES, len(PLACES)))
    return Problem(
        family="routes",
        difficulty=hops,
        key=f"{''.join(ring)} {hops}",
        question=f"Arrows: {listed}. Start at {start} and follow {hops} arrows. Where do you end?",
        trace="\n".join(right),
        check=">".join(ring[: hops + 1]),
        answer=end,
        wrong_trace="\n".join(wrong),
        wrong_answer=wrong_end,
        early_answer=ring[hops - 1],
    )


def _hop(
    start: str, arrows: Mapping[str, str], hops: int, *, slips: Mapping[int, str]
) -> tuple[list[str], str]:
    steps, place = [], start
    for hop in range(hops):
        reached = slips.get(hop, arrows[place])
        steps.append(f"{hop + 1}: {place}>{reached}")
        place = reached
    return steps, place


def prices(rng: random.Random, items: int) -> Problem:
    """Looks prices up and adds them: `nut 7`, `egg 6: 7 + 6 = 13`; `check: 7 + 6 = 13`."""
    goods = rng.sample(GOODS, 4)
    price = {good: rng.randint(1, 9) for good in goods}
    bought = [rng.choice(goods) for _ in range(items)]
    slip_at = rng.randrange(items)
    slip = rng.choice((1, 2))
    right, total = _pay(bought, price, slips={})
    wrong, wrong_total = _pay(bought, price, slips={slip_at: slip})
    listed = ", ".join(f"{good} {price[good]}" for good in goods)
    return Problem(
        family="prices",
        difficulty=items,
        key=f"{listed}: {' '.join(sorted(bought))}",
        question=f"Prices: {listed}. What do these cost together: {', '.join(bought)}?",
        trace="\n".join(right),
        check=f"{' + '.join(str(price[good]) for good in bought)} = {total}",
        answer=str(total),
        wrong_trace="\n".join(wrong),
        wrong_answer=str(wrong_total),
        early_answer=str(total - price[bought[-1]]),
    )


def _pay(
    bought: Sequence[str], price: Mapping[str, int], *, slips: Mapping[int, int]
) -> tuple[list[str], int]:
    """A slip is a price read wrong, and the sum that comes of it."""
    paid = [price[good] + slips.get(place, 0) for place, good in enumerate(bought)]
    steps, total = [f"{bought[0]} {paid[0]}"], paid[0]
    for good, cost in zip(bought[1:], paid[1:], strict=True):
        steps.append(f"{good} {cost}: {total} + {cost} = {total + cost}")
        total += cost
    return steps, total


# Family -> how to make one problem, and its difficulties from easy to hard.
FAMILIES: dict[str, tuple[Callable[[random.Random, int], Problem], tuple[int, ...]]] = {
    "sums": (sums, (3, 4, 5)),
    "routes": (routes, (2, 3, 4)),
    "prices": (prices, (2, 3, 4)),
}


def distinct(family: str, seed: int | str) -> Iterator[Problem]:
    """Problems of one family without end, difficulties in turn, none twice whatever its wording."""
    make, difficulties = FAMILIES[family]
    rng = random.Random(f"{seed}/{family}")
    seen: set[str] = set()
    for difficulty in cycle(difficulties):
        for _ in range(MOST_DRAWS):
            problem = make(rng, difficulty)
            if problem.key not in seen:
                break
        else:
            raise SystemExit(
                f"family {family}, difficulty {difficulty}: no new one in {MOST_DRAWS} draws after "
                f"{len(seen)} problem(s) in all; ask for fewer"
            )
        seen.add(problem.key)
        yield problem


def training_rows(problems: Iterable[Problem]) -> Iterator[Row]:
    """Rows for SFT, the two modes in equal parts within each family and difficulty; most traces with a check."""
    for mode, turn, problem in _with_modes(problems):
        answer: Row = {"role": "assistant", "content": problem.answer}
        if mode == "think":
            bare = turn % BARE == BARE - 1
            answer["reasoning_content"] = problem.trace if bare else problem.checked_trace
        yield {
            "messages": [_user(problem.question), answer],
            "mode": mode,
            "family": problem.family,
            "difficulty": problem.difficulty,
        }


def pair_rows(problems: Iterable[Problem], *, shorter: bool) -> Iterator[Row]:
    """Preference pairs, the modes in equal parts: right work against the same work with one slip. With `shorter`
    half of the think pairs are right work against the same with a check, and a quarter against work that stops early.
    """
    for mode, turn, problem in _with_modes(problems):
        prefers = PREFERENCES[turn % 4] if shorter and mode == "think" else "right"
        trace, answer = {
            "right": (problem.wrong_trace, problem.wrong_answer),
            "shorter": (problem.checked_trace, problem.answer),
            "complete": (problem.early_trace, problem.early_answer),
        }[prefers]
        chosen: Row = {"role": "assistant", "content": problem.answer}
        rejected: Row = {"role": "assistant", "content": answer}
        if mode == "think":
            chosen["reasoning_content"] = problem.trace
            rejected["reasoning_content"] = trace
        yield {
            "prompt": [_user(problem.question)],
            "chosen": [chosen],
            "rejected": [rejected],
            "mode": mode,
            "prefers": prefers,
            "family": problem.family,
            "difficulty": problem.difficulty,
        }


def task_rows(problems: Iterable[Problem]) -> Iterator[Row]:
    """Rows of an evaluation task: a prompt and its answer, to be asked in both modes."""
    for problem in problems:
        yield {
            "prompt": problem.question,
            "answer": problem.answer,
            "family": problem.family,
            "difficulty": problem.difficulty,
        }


def chat_rows(path: Path) -> Iterator[Row]:
    """The hand-written chat: rows with thinking are think rows, the others no_think."""
    for line in path.read_text(encoding="utf-8").splitlines():
        chat = json.loads(line)
        answer: Row = {"role": "assistant", "content": chat["answer"]}
        if "thinking" in chat:
            answer["reasoning_content"] = chat["thinking"]
        mode = "think" if "thinking" in chat else "no_think"
        yield {"messages": [_user(chat["question"]), answer], "mode": mode, "family": "chat"}


def _with_modes(problems: Iterable[Problem]) -> Iterator[tuple[str, int, Problem]]:
    """Each problem with its mode, which changes once all difficulties of the family have had their turn, and the
    number of that turn within the mode.
    """
    for place, problem in enumerate(problems):
        turn, mode = divmod(place // len(FAMILIES[problem.family][1]), 2)
        yield MODES[mode], turn, problem


def _user(question: str) -> Row:
    return {"role": "user", "content": question}


def write(path: Path, rows: Iterable[Row], *, prefix: str) -> int:
    """Writes rows as JSON lines with an id each; says how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for written, row in enumerate(rows, start=1):
            name = f"{prefix}-{row.get('family', 'row')}-{written:05d}"
            file.write(json.dumps({"id": name, **row}, ensure_ascii=False) + "\n")
    return written


def write_all(out: Path, sizes: argparse.Namespace) -> dict[str, int]:
    """Deals each family's problems out to the files, so that no two files share one; rows per file."""
    train: list[Row] = []
    pairs: list[Row] = []
    heldout: list[Row] = []
    written: dict[str, int] = {}
    for family in FAMILIES:
        problems = distinct(family, sizes.seed)
        # The test sets come first: they stay the same whatever is asked for training.
        written |= _write_tasks(out, "test", family, list(islice(problems, sizes.test)))
        heldout += pair_rows(islice(problems, sizes.heldout_pairs), shorter=False)
        train += training_rows(islice(problems, sizes.train))
        pairs += pair_rows(islice(problems, sizes.pairs), shorter=True)
        prompts = list(islice(problems, sizes.pair_prompts))
        written |= _write_tasks(out, "pair_prompts", family, prompts)
    train += chat_rows(Path(__file__).with_name("chat.jsonl"))
    random.Random(f"{sizes.seed}/order").shuffle(train)
    random.Random(f"{sizes.seed}/order").shuffle(pairs)
    for name, rows in (("train", train), ("pairs", pairs), ("heldout_pairs", heldout)):
        written[f"{name}.jsonl"] = write(out / f"{name}.jsonl", rows, prefix=name)
    return written


def _write_tasks(
    out: Path, folder: str, family: str, problems: Iterable[Problem]
) -> dict[str, int]:
    name = f"{folder}/{family}.jsonl"
    return {name: write(out / name, task_rows(problems), prefix=folder)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; prints what was written."""
    parser = argparse.ArgumentParser(description="Makes the quickstart's problems.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    for name, rows, text in (
        ("train", 240, "training problems of each family, half in each mode"),
        ("pairs", 60, "preference pairs of each family, half in each mode"),
        ("heldout-pairs", 24, "pairs of each family that are only measured"),
        ("pair-prompts", 48, "problems of each family for sampling pairs from a checkpoint"),
        ("test", 60, "test problems of each family"),
    ):
        parser.add_argument(f"--{name}", type=int, default=rows, help=f"{text} ({rows})")
    sizes = parser.parse_args(arguments)
    for file in sorted(Path(__file__).with_name("tasks").glob("*.yaml")):
        target = sizes.out / "tasks" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    for name, count in write_all(sizes.out, sizes).items():
        print(f"{count:6d}  {name}")


if __name__ == "__main__":
    main()
