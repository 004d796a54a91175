"""Makes the domain's data: questions with answers and no traces, test sets, and the quickstart's rows beside them.

The made-up domain is a ferry company that weighs its cargo. A row is what most people have: a question, and the answer
that a person would give, in a sentence. What the ferry carries is the sum of what the question lists; nobody wrote down
how to get there. Training rows, questions for preference pairs and test rows share no problem.

The quickstart's rows and test sets are copied, so that one folder has all that this recipe reads. Only the standard
library is needed:

    python problems.py --out DIR --seed 0 --quickstart runs/quickstart/data
"""

import argparse
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

GOODS = ("salt", "coal", "wool", "rice", "corn", "fish", "iron", "wood")
ITEMS = (3, 4, 5)  # from easy to hard
OLD = ("train.jsonl", "test", "pair_prompts", "tasks")  # of the quickstart's data

Row = dict[str, Any]


def cargo(seed: int | str) -> Iterator[Row]:
    """Problems without end, difficulties in turn, none twice whatever the order of its goods."""
    rng = random.Random(f"{seed}/cargo")
    seen: set[tuple[tuple[str, int], ...]] = set()
    for items in cycle(ITEMS):
        goods = [(good, rng.randint(1, 9)) for good in rng.sample(GOODS, items)]
        key = tuple(sorted(goods))
        while key in seen:
            goods = [(good, rng.randint(1, 9)) for good in rng.sample(GOODS, items)]
            key = tuple(sorted(goods))
        seen.add(key)
        yield row(goods)


def row(goods: Sequence[tuple[str, int]]) -> Row:
    """A question with its answer; `tons` is what a verifier compares with."""
    listed = ", ".join(f"{good} {tons}" for good, tons in goods)
    total = sum(tons for _, tons in goods)
    return {
        "question": f"Tons on the ferry: {listed}. How heavy is all of it?",
        "answer": f"It carries {total} tons.",
        "tons": str(total),
        "difficulty": len(goods),
    }


def write(path: Path, rows: Iterable[Row], *, prefix: str) -> int:
    """Writes rows as JSON lines with an id each; says how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for written, problem in enumerate(rows, start=1):
            line = {"id": f"{prefix}-{written:05d}", **problem}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return written


def copy_quickstart(source: Path, out: Path) -> None:
    """Copies the rows and test sets of the quickstart's run."""
    for name in OLD:
        if not (source / name).exists():
            raise SystemExit(
                f"{source / name}: not there. This recipe starts from a finished quickstart: run "
                "`make demo` or `dualign run quickstart` first, in the folder that you run this in, "
                "or name its data: data.args.quickstart=OTHER/data"
            )
    for name in OLD:
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / name, out / f"quickstart-{name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; prints what was written."""
    parser = argparse.ArgumentParser(description="Makes the domain's data.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument(
        "--quickstart",
        type=Path,
        default=Path("runs/quickstart/data"),
        help="the quickstart's data",
    )
    for name, rows, text in (
        ("train", 180, "questions that get a trace"),
        ("pairs", 60, "questions for preference pairs"),
        ("test", 60, "test questions"),
    ):
        parser.add_argument(f"--{name}", type=int, default=rows, help=f"{text} ({rows})")
    sizes = parser.parse_args(arguments)
    copy_quickstart(sizes.quickstart, sizes.out)
    for file in sorted(Path(__file__).with_name("tasks").glob("*.yaml")):
        shutil.copyfile(file, sizes.out / "tasks" / file.name)
    problems = cargo(sizes.seed)
    # The test set comes first: it stays the same whatever is asked for training.
    for name, prefix, count in (
        ("test/cargo.jsonl", "test", sizes.test),
        ("pair_prompts/cargo.jsonl", "pairs", sizes.pairs),
        ("cargo.jsonl", "train", sizes.train),
    ):
        written = write(sizes.out / name, islice(problems, count), prefix=f"{prefix}-cargo")
        print(f"{written:6d}  {name}")


if __name__ == "__main__":
    main()
