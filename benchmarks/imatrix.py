"""What an importance matrix does to low bits in both modes, and what rows it has to be measured on.

    python -m benchmarks.wider runs/quickstart/merged WIDE
    D=runs/quickstart/data
    python -m benchmarks.imatrix WIDE $D/train.jsonl --task $D/tasks/sums.yaml $D/tasks/routes.yaml $D/tasks/prices.yaml

Each type is packed without a matrix, and with matrices of as many rows: of both modes, of no_think alone, of think
alone. Then the model in float32 answers held-out problems and open questions greedily in both modes, and each file's numbers read those
answers in transformers: KL(model || file) of each token over the whole vocabulary, the end of the turn included.
Intervals are of a paired bootstrap by problem. Figures are kept in WORK/figures.jsonl: a run goes on where it stopped.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualign.data.conversation import MODES
from dualign.export.calibration import calibration
from dualign.export.convert import write_exact
from dualign.export.dequantized import dequantize_into
from dualign.export.imatrix import ImportanceFile, measure, read_importance, write_importance
from dualign.export.mixtures import needing_importance, types_of
from dualign.export.model_source import ExportSource, open_source
from dualign.export.quantize import quantize
from dualign.generation.generate import end_ids, generate
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import trace_marks
from dualign.models.loading import load_model
from dualign.models.prompts import prompt, switch_of
from dualign.tasks.table import load_questions

_TYPES = ("q2_k", "iq3_xxs", "q3_k_m", "iq2_xxs", "iq2_xs", "iq3_s", "iq4_xs", "q4_k_m")
_MATRICES = ("none", "both", "no_think", "think")
_PLACES = ("trace", "after", "no_think")
_BATCH = 1024  # tokens
_NEW_TOKENS = {"think": 96, "no_think": 48}
_ASKED = "Tell me in a few sentences why {} matters."
_TOPICS = (
    "rain", "sleep", "bread", "a map", "salt", "music", "glass", "trust",
    "a garden", "school", "the moon", "paper", "a bridge", "honesty", "a clock", "the sea",
)  # fmt: skip
_DRAWS = 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A held-out problem with the model's own answer."""

    mode: str
    ids: tuple[int, ...]
    start: int
    """of the answer"""
    end: int
    """of the trace; `start` without one"""


def answered(
    model: PreTrainedModel, source: ExportSource, tasks: Sequence[str], limit: int
) -> list[_Row]:
    """Let the model answer the tasks, and some open questions, in both modes, greedily."""
    tokenizer = source.tokenizer
    asked = [p.messages for _, of_task in load_questions(tasks, limit=limit) for p in of_task]
    asked += [({"role": "user", "content": _ASKED.format(topic)},) for topic in _TOPICS]
    closing = trace_marks(tokenizer).closing
    rows = []
    for mode in MODES:
        texts = [prompt(tokenizer, messages, mode, switch_of(tokenizer)) for messages in asked]
        sampling = Sampling(max_new_tokens=_NEW_TOKENS[mode])
        for text, answer in zip(texts, generate(model, tokenizer, texts, sampling), strict=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            new = [*answer.token_ids, *(end_ids(model, tokenizer)[:1] if answer.finished else ())]
            length = _trace_length(tokenizer, new, closing) if mode == "think" else 0
            rows.append(_Row(mode=mode, ids=(*ids, *new), start=len(ids), end=len(ids) + length))
    return rows


def _trace_length(tokenizer: PreTrainedTokenizerBase, new: Sequence[int], closing: str) -> int:
    """Return the tokens up to the end of the mark that closes a trace; all where none does."""
    lengths = range(1, len(new) + 1)
    return next((n for n in lengths if closing in tokenizer.decode(new[:n])), len(new))


def log_probs(model: PreTrainedModel, rows: Sequence[_Row]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (row, log-probabilities of its answer's tokens [T, V]), in batches of like length."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    while order:
        longest = len(rows[order[-1]].ids)
        batch = [order.pop() for _ in range(min(len(order), max(_BATCH // longest, 1)))]
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        for line, place in enumerate(batch):  # what stands behind a row changes nothing before it
            ids[line, : len(rows[place].ids)] = torch.tensor(rows[place].ids)
        with torch.inference_mode():
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            for line, place in enumerate(batch):
                row = rows[place]
                answer = hidden[line, row.start - 1 : len(row.ids) - 1]
                yield place, model.lm_head(answer).log_softmax(-1)


def divergences(
    model: PreTrainedModel, rows: Sequence[_Row], reference: dict[int, torch.Tensor]
) -> list[list[float]]:
    """Return KL(reference || model) of each token of each row."""
    found: list[list[float]] = [[] for _ in rows]
    for place, q in log_probs(model, rows):
        p = reference[place]
        found[place] = (p.exp() * (p - q)).sum(-1).tolist()
    return found


def matrix_of(
    name: str, model: PreTrainedModel, source: ExportSource, file: Path, rows: int, work: Path
) -> ImportanceFile | None:
    """Measure a matrix on rows of both modes, or of one alone, unless its file is there."""
    if name == "none":
        return None
    assert source.layout is not None
    out, architecture = work / f"{name}-imatrix.gguf", source.layout.architecture.name
    if not out.exists():
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if name == "both" or json.loads(line)["mode"] == name]
        part = work / f"rows-{name}.jsonl"
        part.write_text("\n".join(kept) + "\n", encoding="utf-8")
        drawn = calibration(source.model, str(part), rows=rows)
        print(name, drawn.record()["modes"], flush=True)
        measured = measure(model, [row.ids for row in drawn.rows], architecture, name)
        write_importance(out, measured, architecture)
    shapes = {tensor.name: tensor.shape for tensor in source.layout.tensors}
    return ImportanceFile(importance=read_importance(out, shapes), file=out, record={})


def usable(source: ExportSource, type: str, matrix: ImportanceFile | None) -> bool:
    """Whether llama.cpp packs the type with that."""
    assert source.layout is not None
    shapes = {tensor.name: tensor.shape for tensor in source.layout.tensors}
    return matrix is not None or not needing_importance(types_of(shapes, type), type)


def run(arguments: argparse.Namespace) -> None:
    """Measure what isn't in the file of figures yet."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    source = open_source(arguments.model, name="x", foreign=False)
    assert source.layout is not None
    model = load_model(arguments.model, dtype="float32")
    if not (work / "rows.json").exists():
        rows = answered(model, source, arguments.task, arguments.rows)
        (work / "rows.json").write_text(json.dumps([asdict(row) for row in rows]))
    rows = _rows(work)
    reference = dict(log_probs(model, rows))
    made = {
        name: matrix_of(
            name, model, source, arguments.calibration, arguments.calibration_rows, work
        )
        for name in arguments.matrices
    }
    exact, packed, figures = work / "exact.gguf", work / "packed.gguf", work / "figures.jsonl"
    write_exact(source, exact, "f16", None)
    kept = figures.read_text().splitlines() if figures.exists() else []
    done = {(entry["type"], entry["matrix"]) for entry in map(json.loads, kept)}
    for type, name in product(arguments.types, made):
        if (type, name) in done or not usable(source, type, made[name]):
            continue
        result = quantize(exact, packed, type=type, importance=made[name])
        dequantize_into(model, packed, source.layout.tensors)
        entry = {
            "type": type,
            "matrix": name,
            "bytes": packed.stat().st_size,
            "error": result.error,
            "kl": divergences(model, rows, reference),
        }
        with figures.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        show(work)


def _rows(work: Path) -> list[_Row]:
    return [_Row(**row) for row in json.loads((work / "rows.json").read_text())]


def show(work: Path) -> None:
    """Print the mean KL of each place, and its change from no matrix, and from one of both modes."""
    rows = _rows(work)
    entries = [json.loads(line) for line in (work / "figures.jsonl").read_text().splitlines()]
    sums = {(e["type"], e["matrix"]): _sums(rows, e["kl"]) for e in entries}
    counts = next(iter(sums.values()))[1].sum(1)
    print(f"\ntokens: {dict(zip(_PLACES, counts.astype(int).tolist(), strict=True))}")
    for entry in entries:
        type, name = entry["type"], entry["matrix"]
        cells = []
        for place in range(len(_PLACES)):
            kl = _mean(*sums[type, name])[place]
            cell = f"{kl:.4f}"
            for other in ("none", "both")[: 1 if name == "both" else 2]:
                if name != other and (type, other) in sums:
                    low, high = _ratio(sums[type, name], sums[type, other], place)
                    before = _mean(*sums[type, other])[place]
                    cell += f" {kl / before:.2f}x {other} [{low:.2f}, {high:.2f}]"
            cells.append(cell)
        print(
            f"{type:8} {name:8} {entry['bytes'] / 1e6:5.1f} MB  " + "  |  ".join(cells), flush=True
        )


def _sums(rows: Sequence[_Row], kl: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of KL and the number of tokens of each place in each row [places, rows]."""
    totals, counts = np.zeros((2, len(_PLACES), len(rows)))
    for number, (row, values) in enumerate(zip(rows, kl, strict=True)):
        split = row.end - row.start
        parts = (values[:split], values[split:], []) if row.mode == "think" else ([], [], values)
        for place, part in enumerate(parts):
            totals[place, number], counts[place, number] = sum(part), len(part)
    return totals, counts


def _mean(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return totals.sum(-1) / counts.sum(-1)


def _ratio(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], place: int
) -> tuple[float, float]:
    """Return the 95 % interval of a mean over another, of the same rows."""
    rows = np.flatnonzero(first[1][place])
    drawn = np.random.default_rng(0).choice(rows, (_DRAWS, rows.size))
    ratio = first[0][place][drawn].sum(1) / second[0][place][drawn].sum(1)
    low, high = np.quantile(ratio, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Read the command line, measure, and print a table after each file."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="whose rows are as wide as the types need")
    parser.add_argument("calibration", type=Path, help="rows of both modes")
    parser.add_argument("--task", nargs="+", required=True, help="held-out problems")
    parser.add_argument("--rows", type=int, default=20, help="problems of each task")
    parser.add_argument("--calibration-rows", type=int, default=128)
    parser.add_argument("--matrices", nargs="+", choices=_MATRICES, default=_MATRICES)
    parser.add_argument("--types", nargs="+", default=_TYPES)
    parser.add_argument("--work", type=Path, default=Path("imatrix"))
    run(parser.parse_args())


if __name__ == "__main__":
    main()
