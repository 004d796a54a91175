"""A training step of dualign beside TRL's: rows of a table, a process for each side, interleaved.

    OMP_NUM_THREADS=2 python -m benchmarks.training                 all rows, in float32 on the CPU
    python -m benchmarks.training --rows apo-2 apo-long --repeats 3
    python -m benchmarks.training --rows apo-2 --profile            shares of the operations of a step
    python -m benchmarks.training --tiny                            the same code on a model of two layers

Each process loads the model, then trains for `--warm-up` steps and `--steps` more, which are timed.
Memory is the process's peak above what it held when the trainer was made and the model loaded.
A side that fails leaves the other's figures in the table; each side's end is told on stderr.
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.training_sft import SFT_ROWS, SFTRow

LEARNING_RATE = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Tokens of prompts and answers; a spread is the sigma of a log-normal distribution."""

    prompt: int
    answer: tuple[int, int]
    spread: float = 0.0

    def shrunk(self, factor: int) -> "Lengths":
        """Return shorter prompts and answers."""
        shortest, longest = (max(2, length // factor) for length in self.answer)
        return replace(self, prompt=max(2, self.prompt // factor), answer=(shortest, longest))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table: what is trained, and what is asked of dualign's share of TRL's."""

    text: str
    lengths: Lengths
    pairs: int
    speed_bar: float
    memory_bar: float | None = None
    unit: str = "pairs"
    sides: tuple[str, str] = ("trl", "dualign")

    def units(self, side: str, steps: int) -> int:
        """Return the pairs of some steps."""
        return self.pairs * steps

    def trainer(self, side: str, model: Path, vocabulary: int, steps: int, work: Path) -> Any:
        """Return the trainer of a side, for so many steps."""
        pairs = pairs_of(self.lengths, self.pairs * steps, vocabulary)
        return {"trl": trl_trainer, "dualign": dualign_trainer}[side](
            self, model, pairs, steps, work
        )

    def shrunk(self, factor: int) -> "Row":
        """Return the row with shorter prompts and answers."""
        return replace(self, lengths=self.lengths.shrunk(factor))


_MIXED = Lengths(prompt=270, answer=(40, 250), spread=0.5)
_EQUAL = Lengths(prompt=310, answer=(65, 65))
_LONG = Lengths(prompt=1500, answer=(40, 250))
ROWS: Mapping[str, Row | SFTRow] = {
    "apo-2": Row(
        text="APO-zero, LoRA r16, log-normal prompts around 270, answers 40 to 250, 2 pairs a batch",
        lengths=_MIXED,
        pairs=2,
        speed_bar=3.0,
        memory_bar=0.35,
    ),
    "apo-4": Row(
        text="the same, 4 pairs a batch",
        lengths=_MIXED,
        pairs=4,
        speed_bar=3.0,
        memory_bar=0.35,
    ),
    "apo-equal": Row(
        text="prompts of 310 and answers of 65, 2 pairs a batch",
        lengths=_EQUAL,
        pairs=2,
        speed_bar=2.2,
    ),
    "apo-long": Row(
        text="prompts of 1,500, answers 40 to 250, 1 pair a batch",
        lengths=_LONG,
        pairs=1,
        speed_bar=3.0,
    ),
    **SFT_ROWS,
}


def pairs_of(lengths: Lengths, count: int, vocabulary: int) -> list[dict[str, Any]]:
    """Return pairs of random tokens; both sides get the same."""
    draw = random.Random(0)

    def ids(number: float) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(max(2, round(number)))]

    return [
        {
            "prompt_ids": ids(lengths.prompt * math.exp(draw.gauss(0, lengths.spread))),
            "chosen_ids": ids(draw.uniform(*lengths.answer)),
            "rejected_ids": ids(draw.uniform(*lengths.answer)),
            "group": 0,
        }
        for _ in range(count)
    ]


# ---------------------------------------------------------------- a side, in a process of its own


def trl_trainer(row: Row, model: Path, pairs: list[dict[str, Any]], steps: int, work: Path) -> Any:
    """Return TRL's trainer on tokenized pairs."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class TokenizedPairs(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    return TokenizedPairs(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        args=DPOConfig(
            **arguments(row, steps),
            output_dir=str(work),
            loss_type="apo_zero",
            max_length=None,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=lora,
    )


def dualign_trainer(
    row: Row, model: Path, pairs: list[dict[str, Any]], steps: int, work: Path
) -> Any:
    """Return the trainer of a preference stage on the same pairs."""
    from datasets import Dataset

    from dualign.data.config import DataConfig, SourceConfig
    from dualign.data.prepare import PairData
    from dualign.models.source import resolve_model
    from dualign.models.tokenizer import load_tokenizer
    from dualign.preference.config import PreferenceStage
    from dualign.preference.train import build_trainer
    from dualign.training.adapter import AdapterConfig

    stage = PreferenceStage(
        name="apo",
        model=str(model),
        data=DataConfig(sources=(SourceConfig(path="pairs.jsonl"),), packing="none"),
        lora=AdapterConfig(r=16),
        train={**arguments(row, steps), "save_strategy": "no"},
    )
    source = resolve_model(stage.model)
    tokenizer, _ = load_tokenizer(source, stage.template, {})
    data = PairData(
        train=Dataset.from_list(pairs),
        validation=None,
        groups=(("no_think", "pairs"),),
        rows={},
        sources=(),
    )
    return build_trainer(stage, source, data, tokenizer, work, seed=0)


def arguments(row: Row, steps: int) -> dict[str, Any]:
    """Return the arguments that both sides have."""
    return {
        "per_device_train_batch_size": row.pairs,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "logging_steps": 10,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "disable_tqdm": True,
    }


class MemoryPeak:
    """The most memory that the process holds while the context is open, above what it held before."""

    def __enter__(self) -> "MemoryPeak":
        self._done = threading.Event()
        self.before = self.peak = _held()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        return (self.peak - self.before) / 2**20

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, _held())


def _held() -> int:
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def run_side(
    side: str, name: str, steps: int, *, warm_up: int = 1, tiny: bool = False, profile: bool = False
) -> dict[str, Any]:
    """Train, and return seconds for each step, pairs and peak memory, or the operations' shares."""
    from transformers import TrainerCallback

    row = ROWS[name].shrunk(16) if tiny else ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "model") if tiny else _embedded()
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        trainer = row.trainer(side, model, vocabulary, warm_up + steps, Path(folder) / "work")
        clocks: list[tuple[float, float]] = []

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clocks.append((time.perf_counter(), time.process_time()))

            on_step_end = on_train_begin

        trainer.add_callback(Clock())
        if profile:
            return _profiled(trainer, warm_up)
        with MemoryPeak() as memory:
            trainer.train()
    wall, cpu = zip(*clocks[warm_up:], strict=True)
    return {
        "seconds": [later - earlier for earlier, later in pairwise(wall)],
        "cpu_seconds": cpu[-1] - cpu[0],
        "units": row.units(side, steps),
        "memory_mb": memory.megabytes,
        "train_loss": trainer.state.log_history[-1]["train_loss"],
    }


def _embedded() -> Path:
    from dualign.checkpoints.embedded import embedded_model

    return Path(embedded_model())


def tiny_model(folder: Path) -> Path:
    """Write a model of two layers with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(_embedded())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "attention")


def _profiled(trainer: Any, warm_up: int) -> dict[str, Any]:
    """Return each operation's share of the time of all operations of the timed steps."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback, TrainerState

    profiler = profile(activities=[ProfilerActivity.CPU])

    class Profiler(TrainerCallback):
        def on_step_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
            if state.global_step == warm_up:
                profiler.start()

    trainer.add_callback(Profiler())
    trainer.train()
    profiler.stop()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(times.values())
    products = sum(
        value for name, value in times.items() if any(part in name for part in MATRIX_PRODUCTS)
    )
    largest = sorted(times.items(), key=lambda item: -item[1])[:25]
    return {
        "matrix_products": products / total,
        "operations": {name: round(value / total, 4) for name, value in largest},
    }


# ---------------------------------------------------------------- the table


def measure(side: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--side", side, "--rows", name]
    command += ["--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    command += ["--tiny"] * options.tiny + ["--profile"] * options.profile
    environment = {"OMP_NUM_THREADS": "2", **os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{name} {side}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if process.returncode:
        memory = " (out of memory?)" if process.returncode == -signal.SIGKILL else ""
        last = " ".join(process.stderr[-400:].split())
        return {"failed": f"exit {process.returncode}{memory}: {last}"}
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def _side_line(unit: str, side: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what a side did, whether the other side did it or not."""
    for run in runs:
        if "failed" in run:
            return f"{side} {run['failed']}"
    rate = statistics.median(run["units"] / sum(run["seconds"]) for run in runs)
    return f"{side} {rate:.3g} {unit}/s, {max(run['memory_mb'] for run in runs):,.0f} MB"


def table_line(name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a row of the table: medians of each side, and the ratios with their bars."""
    row = ROWS[name]
    if any("failed" in run for side in runs for run in runs[side]):
        lines = [_side_line(row.unit, side, runs[side]) for side in runs]
        return f"| {name}: {row.text} | {' | '.join(lines)} | | | | | |"
    first, second = (
        statistics.median(run["units"] / sum(run["seconds"]) for run in runs[side])
        for side in row.sides
    )
    first_mb, second_mb = (max(run["memory_mb"] for run in runs[side]) for side in row.sides)
    cpu = [
        statistics.median(run["units"] / run["cpu_seconds"] for run in runs[side])
        for side in row.sides
    ]
    bar = "" if row.memory_bar is None else f" (bar {row.memory_bar:.2f})"
    return (
        f"| {name}: {row.text} | {first:.3g} {row.unit}/s | {second:.3g} | {second / first:.2f}x (bar {row.speed_bar:.2f}) "
        f"| {cpu[1] / cpu[0]:.2f}x | {first_mb:,.0f} | {second_mb:,.0f} | {second_mb / first_mb:.2f}x{bar} |"
    )


def main() -> None:
    """Print the table, or run one side for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--side", help="train one side of a row, and print its figures")
    options = parser.parse_args()
    if options.side:
        kind = {"tiny": options.tiny, "profile": options.profile}
        name, steps, warm_up = options.rows[0], options.steps, options.warm_up
        result = run_side(options.side, name, steps, warm_up=warm_up, **kind)
        print(json.dumps(result))
        return
    names = ("torch", "transformers", "trl", "peft")
    print(
        ", ".join(f"{name} {version(name)}" for name in names), f"Python {sys.version.split()[0]}"
    )
    if options.profile:
        for name in options.rows:
            print(name, json.dumps(measure(ROWS[name].sides[1], name, options), indent=1))
        return
    print(
        "| | TRL, or the first | dualign, or the second | speed | by CPU seconds | MB | MB | memory |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name in options.rows:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in ROWS[name].sides}
        for _ in range(options.repeats):
            for side in runs:
                runs[side].append(measure(side, name, options))
        print(table_line(name, runs), flush=True)


if __name__ == "__main__":
    main()
