"""Rows to packed Arrow, dualign beside TRL: the same conversations, template and tokenizer, one process each.

    python benchmarks/data_path.py                     50,000 conversations, three runs each, interleaved
    python benchmarks/data_path.py --scale             dualign alone from 10,000 to 1,000,000 conversations
    python benchmarks/data_path.py --doctor            dualign's preparing beside its doctor

TRL's side is its public path: SFTTrainer with packing and assistant_only_loss on a template that
marks what the assistant writes. It proves nothing about a row; dualign proves every turn of every row.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MAX_TOKENS = 2048
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
TEXT = """the of a to is in number sum price apples train leaves at hour and from each how many we first
then multiply by divide left answer because total costs dollars minutes therefore check again
market garden seven twelve forty three hundred twenty walk river bridge"""
WORDS = TEXT.split()


def main() -> None:
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", action="store_true", help="dualign alone, at growing sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="the rows of --scale")
    parser.add_argument("--doctor", action="store_true", help="preparing beside doctor")
    parser.add_argument("--one", choices=sorted(SIDES), help="measure one side in this process")
    parser.add_argument("--file", type=Path, help="the conversations, with --one")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.file)))
    elif given.scale:
        compare([("dualign", rows) for rows in given.sizes])
    else:
        sides = ("dualign", "doctor") if given.doctor else ("trl", "dualign")
        compare([(side, given.rows) for _ in range(given.runs) for side in sides])


def compare(plan: Sequence[tuple[str, int]]) -> None:
    """Run each (side, rows) in a process of its own and print the medians."""
    versions = {name: version(name) for name in ("trl", "transformers", "datasets", "tokenizers")}
    print(json.dumps(versions))
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side, rows in plan:
            made = run_alone(side, conversations(Path(folder), rows))
            found.setdefault((side, rows), []).append(made)
            print(side, json.dumps(made), flush=True)
    for (side, rows), runs in found.items():
        rate = statistics.median(run["rows_per_second"] for run in runs)
        peak = statistics.median(run["own_memory_mb"] for run in runs)
        used = statistics.median(run["cpu_us_per_row"] for run in runs)
        print(
            f"{side}: {rows:,} rows, median {rate:,.0f} rows/s, {used:,.0f} us of CPU a row, "
            f"{peak:,.0f} MB of its own"
        )


def conversations(folder: Path, rows: int) -> Path:
    """A file of two-turn conversations, every second one with traces, about 215 tokens each."""
    path = folder / f"{rows}.jsonl"
    if not path.is_file():
        draw = random.Random(0)
        with path.open("w", encoding="utf-8") as out:
            for number in range(rows):
                out.write(json.dumps(conversation(draw, number)) + "\n")
    return path


def conversation(draw: random.Random, number: int) -> dict[str, Any]:
    """A row in the shape that both sides read."""
    think = number % 2 == 0
    messages = []
    for _ in range(2):
        messages.append({"role": "user", "content": f"{number}: {words(draw, 20)}?"})
        answer = {"role": "assistant", "content": f"{words(draw, 25)}."}
        trace = f"{words(draw, 30)}\n\n{words(draw, 30)}" if think else ""
        messages.append({**answer, "reasoning_content": trace})
    return {"messages": messages, "chat_template_kwargs": {"enable_thinking": think}}


def words(draw: random.Random, mean: int) -> str:
    """Between half and one and a half times `mean` words."""
    return " ".join(draw.choices(WORDS, k=draw.randint(mean // 2, mean * 3 // 2)))


def run_alone(side: str, path: Path) -> dict[str, Any]:
    """The measurement of one side in a process of its own, with a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, "--one", side, "--file", str(path)],
            env={**environment(), "HF_DATASETS_CACHE": cache},
            check=True,
            capture_output=True,
            text=True,
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def environment() -> dict[str, str]:
    """This process's environment without the hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRACKIO_DISABLED": "1"}


def measure(side: str, path: Path) -> dict[str, Any]:
    """Seconds from the file to the packed rows, imports and tokenizer not counted."""
    with OwnMemory() as memory:
        rows, tokens, packed, (seconds, used) = SIDES[side](path)
    return {
        "rows": rows,
        "tokens": tokens,
        "packed_rows": packed,
        "fill": round(tokens / packed / MAX_TOKENS, 4) if packed else None,
        "seconds": round(float(seconds), 2),
        "rows_per_second": round(float(rows / seconds), 1),
        "cpu_us_per_row": round(float(used / rows * 1e6)),
        "load": round(os.getloadavg()[0], 1),
        "tokens_per_second": round(float(tokens / seconds)),
        "own_memory_mb": round(memory.peak / 2**20),
    }


class OwnMemory:
    """The largest memory that was this process's own, looked at 20 times a second.

    Pages of memory-mapped Arrow files aren't: they are the system's cache of the disk, which is
    given up when anything needs the room. The peak of RSS counts them, and so grows with any file.
    """

    def __enter__(self) -> "OwnMemory":
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
            self.peak = max(self.peak, (int(resident) - int(shared)) * page)
            if self._done.wait(0.05):
                return


def clocks() -> Any:
    """Seconds of wall and of CPU."""
    return np.array([time.perf_counter(), time.process_time()])


def with_dualign(path: Path) -> tuple[int, int, int, Any]:
    """(rows, tokens, packed rows, seconds of wall and of CPU) of dualign's path."""
    from transformers import AutoTokenizer

    from dualign.checkpoints.embedded import embedded_model
    from dualign.data.config import DataConfig, SourceConfig
    from dualign.data.prepare import DataRequest, prepare_sft
    from dualign.data.text.template import load_template

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    data = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=MAX_TOKENS, cache=False)
    started = clocks()
    template = load_template("dualign", tokenizer=tokenizer)
    made = prepare_sft(DataRequest(data, tokenizer, template, seed=0))
    spent = clocks() - started
    return made.rows["examples"], made.rows["tokens"], len(made.train), spent


def with_doctor(path: Path) -> tuple[int, int, int, Any]:
    """(rows, tokens, 0, seconds of wall and of CPU) of doctor's pass over the same rows."""
    from transformers import AutoTokenizer

    from dualign.checkpoints.embedded import embedded_model
    from dualign.data.config import DataConfig, SourceConfig
    from dualign.data.text.template import load_template
    from dualign.doctor.findings import Findings
    from dualign.doctor.survey import SurveyInput, survey

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    data = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=MAX_TOKENS)
    started = clocks()
    template = load_template("dualign", tokenizer=tokenizer)
    rows = survey(SurveyInput(data=data, tokenizer=tokenizer, template=template), Findings())
    spent = clocks() - started
    return rows["examples"], rows["tokens"], 0, spent


def with_trl(path: Path) -> tuple[int, int, int, Any]:
    """(rows, tokens, packed rows, seconds of wall and of CPU) of TRL's path. The model is as small as a model can be."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from dualign.checkpoints.embedded import embedded_model
    from dualign.data.text.template import load_template

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    tokenizer.chat_template = load_template("dualign").text
    small = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = LlamaForCausalLM(small)
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=MAX_TOKENS,
        packing=True,
        packing_strategy="bfd",
        assistant_only_loss=True,
        use_cpu=True,
        report_to="none",
    )
    started = clocks()
    rows = datasets.load_dataset("json", data_files=str(path), split="train")
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer
    )
    spent = clocks() - started
    packed = trainer.train_dataset
    tokens = sum(map(len, packed["input_ids"]))
    return len(rows), tokens, len(packed), spent


SIDES = {"dualign": with_dualign, "doctor": with_doctor, "trl": with_trl}


if __name__ == "__main__":
    main()
