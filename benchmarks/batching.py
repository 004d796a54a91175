"""Answers per second of a mix of lengths: this tree beside an older one, and beside lm-eval's `hf` model.

    git worktree add --detach ../old ec14fab
    OMP_NUM_THREADS=2 python -m benchmarks.batching --old ../old --repeats 3
    python -m benchmarks.batching --old ../old --questions 6 --limit 12     # whether it works

SmolLM2-135M in float32, greedy, each side a process of its own, in turn. A side's seconds, CPU seconds and
anonymous memory are those of generating, above the loaded model. Questions ask for a word, a sentence, a
list or a story; an answer ends where the model ends it, or at the limit. In the second row each question
stands behind the same few-shot examples.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

_MODEL = "embedded:smollm2-135m-instruct"
_ASKED = (
    "Say yes to {}.",
    "Is {} good? Answer yes or no.",
    "Name one word that goes with {}.",
    "Tell me in one sentence why {} matters.",
    "List five facts about {}.",
    "Write a long story about {}.",
)
_TOPICS = ("rain", "sleep", "bread", "a map", "salt", "music", "glass", "trust")
_SHOTS = "".join(
    f"Question: How many letters has the word {topic.split()[-1]}?\n"
    f"Answer: It has {len(topic.split()[-1])} letters, which one counts from its start to its end.\n\n"
    for topic in _TOPICS * 3
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Took:
    """What a side took to generate everything."""

    seconds: float
    cpu_seconds: float
    memory_mb: float
    texts: list[str]
    tokens: list[int]


def _questions(count: int) -> list[str]:
    return [
        _ASKED[n % len(_ASKED)].format(_TOPICS[n // len(_ASKED) % len(_TOPICS)])
        + f" This is question {n}."
        for n in range(count)
    ]


def _prompts(tokenizer: Any, args: argparse.Namespace) -> list[str]:
    shots = _SHOTS if args.few_shot else ""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": shots + question}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in _questions(args.questions)
    ]


def _dualign(args: argparse.Namespace) -> Callable[[], list[str]]:
    from dualign.generation.generate import generate
    from dualign.generation.sampling import Sampling
    from dualign.models.loading import open_model

    subject = open_model(_MODEL, dtype="float32")
    model, tokenizer = subject.weights(), subject.tokenizer
    prompts, sampling = _prompts(tokenizer, args), Sampling(max_new_tokens=args.limit)

    def run() -> list[str]:
        made = generate(model, tokenizer, prompts, sampling, batch_tokens=args.batch_tokens)
        return [each.text for each in made]

    return run


def _lm_eval(args: argparse.Namespace) -> Callable[[], list[str]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from dualign.checkpoints.embedded import embedded_model

    model = HFLM(
        pretrained=str(embedded_model()), dtype="float32", device="cpu", batch_size=args.batch_size
    )
    settings = {"until": [], "max_gen_toks": args.limit, "do_sample": False}
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, dict(settings)), idx=n)
        for n, prompt in enumerate(_prompts(model.tokenizer, args))
    ]
    return lambda: list(model.generate_until(requests, disable_tqdm=True))


def _side(args: argparse.Namespace) -> None:
    """Generate everything once, and print what it took."""
    from benchmarks.measure import anonymous_mb

    run = (_lm_eval if args.side == "lm_eval" else _dualign)(args)
    status = Path("/proc/self/status")
    before = peak = anonymous_mb(status)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, anonymous_mb(status))

    thread = threading.Thread(target=watch)
    thread.start()
    clock, cpu = time.monotonic(), time.process_time()
    texts = run()
    took = {"seconds": time.monotonic() - clock, "cpu_seconds": time.process_time() - cpu}
    ended.set()
    thread.join()
    from transformers import AutoTokenizer

    from dualign.checkpoints.embedded import embedded_model

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    print(json.dumps({**took, "memory_mb": peak - before, "texts": texts, "tokens": tokens}))


def _run(root: Path, side: str, args: argparse.Namespace, *more: str) -> Took:
    """Run a side in a process, with the package of the tree `root`."""
    here = Path(__file__).resolve()
    options = ["--questions", args.questions, "--limit", args.limit]
    options += ["--batch-tokens", args.batch_tokens, "--side", side, *more]
    # The tree of the package comes first, this one gives the benchmark alone.
    paths = os.pathsep.join([str(root), str(here.parents[1])])
    settings = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, str(here), *map(str, options)],
        env=settings, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return Took(**json.loads(process.stdout.splitlines()[-1]))


def _row(name: str, bar: str, first: list[Took], second: list[Took]) -> str:
    """Return a row of the table: the first side, the second, and their ratios turn by turn."""

    def speed(took: Took) -> float:
        return len(took.texts) / took.seconds

    ratios = [speed(b) / speed(a) for a, b in zip(first, second, strict=True)]
    by_cpu = median(a.cpu_seconds / b.cpu_seconds for a, b in zip(first, second, strict=True))
    same = sum(a == b for a, b in zip(first[0].texts, second[0].texts, strict=True))
    memory = [max(took.memory_mb for took in side) for side in (first, second)]
    return (
        f"| {name} | {bar} | {median(map(speed, first)):.3f} | {median(map(speed, second)):.3f} | "
        f"{median(ratios):.2f}x | {', '.join(f'{ratio:.2f}' for ratio in ratios)} | {by_cpu:.2f}x | "
        f"{memory[0]:.0f} and {memory[1]:.0f} | {same} of {len(first[0].texts)} |"
    )


def _compare(args: argparse.Namespace) -> None:
    """Run the sides in turn, and print the table."""
    root, few = Path(__file__).resolve().parents[1], ["--few-shot"]
    pairs: list[tuple[str, str, Callable[[], Took], Callable[[], Took]]] = []
    if args.old:
        old = args.old.resolve()
        for name, more in (("a mix of lengths", []), ("behind few-shot examples", few)):
            pairs.append(
                (
                    f"{name}, before and now",
                    "1.5x",
                    lambda more=more: _run(old, "dualign", args, *more),
                    lambda more=more: _run(root, "dualign", args, *more),
                )
            )
    for size in args.batch_sizes:
        pairs.append(
            (
                f"a mix of lengths, lm-eval in batches of {size} and dualign",
                "3x",
                lambda size=size: _run(root, "lm_eval", args, "--batch-size", str(size)),
                lambda: _run(root, "dualign", args),
            )
        )
    names = ("torch", "transformers", "lm_eval")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(
        "| | bar | first, answers/s | second | ratio | turn by turn | by CPU seconds | memory, MB | same answers |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    lengths: list[int] = []
    for name, bar, first, second in pairs:
        sides: tuple[list[Took], list[Took]] = ([], [])
        for turn in range(args.repeats):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                sides[side].append((first, second)[side]())
        lengths = lengths or sorted(sides[1][0].tokens)
        print(_row(name, bar, *sides), flush=True)
    quarters = [lengths[len(lengths) * n // 4 - (n == 4)] for n in range(5)]
    print(f"\ntokens of the {len(lengths)} answers, by quarters: {', '.join(map(str, quarters))}")


def main() -> None:
    """Print the table, or what one side took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="a worktree of an older commit")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--limit", type=int, default=500, help="tokens of an answer")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of both trees")
    parser.add_argument("--batch-sizes", nargs="*", default=["1", "8", "16"], help="of lm-eval")
    parser.add_argument("--repeats", type=int, default=1, help="turns of each side")
    parser.add_argument("--side", choices=("dualign", "lm_eval"), help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", default="1", help=argparse.SUPPRESS)
    parser.add_argument("--few-shot", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        _side(args)
    else:
        _compare(args)


if __name__ == "__main__":
    main()
