"""What a GPU does with dualign: attention's back ends, training beside TRL's, memory, generation.

    python -m benchmarks.gpu                              all parts, at most 8 minutes on one 80 GB card
    python -m benchmarks.gpu --json gpu.json              the figures as a file, besides the table
    python -m benchmarks.gpu --parts attention apo-1.7b-lora
    python -m benchmarks.gpu --long                       rows of 4k, 16k and 64k tokens, plain, in tiles, offloaded
    python -m benchmarks.gpu --tiny                       the same code on models of two layers, also on a CPU

It needs no network and no files: models are random weights of published shapes, rows are random tokens.
A worker process goes through the parts. A part that fails is reported; one that takes too long ends
with its worker, and another worker goes on with the rest.
"""

import argparse
import gc
import json
import os
import platform
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.training import Lengths, pairs_of

LIMIT_SECONDS = 480
_PACKAGES = ("dualign", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
_PACKAGES += ("flash-attn", "kernels")
_RESULT = "RESULT "
# SmolLM2-135M, and SmolLM3 with half of its layers: 1.67 B parameters.
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "1.7b": {
        "model_type": "smollm3",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}
_TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
_TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1}
# Prompts and answers as in benchmarks.training.
_PAIRS = Lengths(prompt=270, answer=(40, 250), spread=0.5)

Figure = dict[str, Any]
"""part, what, unit, dualign, trl (None where TRL has none)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How large the parts are, and where models are kept between them."""

    folder: Path
    tiny: bool

    @property
    def device(self) -> torch.device:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A stage that both sides train."""

    pairs: bool
    shape: str
    weights: str
    """full, lora or nf4"""
    batch: int
    """packed rows, or pairs"""
    tokens: int = 2048
    """of a packed row"""
    tiled: bool = False
    """MLPs in tiles"""
    offloaded: bool = False
    """what layers keep waits in the host's memory"""

    @property
    def is_long(self) -> bool:
        """Whether a row is one document, trained by dualign alone."""
        return self.tokens > 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One line of the list: what is measured, and how long it may take."""

    run: Callable[[Setting], Iterator[Figure]]
    seconds: int


# ---------------------------------------------------------------- models and rows


def make_model(setting: Setting, name: str) -> Path:
    """Write random weights of a shape, once for all parts, in bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = setting.folder / name
    if folder.is_dir():
        return folder
    fields = {**_SHAPES[name], **(_TINY if setting.tiny else {})}
    fields |= {"max_position_embeddings": 65536, "pad_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(**fields)
    torch.manual_seed(0)
    with setting.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    work = folder.with_suffix(".partial")
    model.save_pretrained(work)
    make_tokenizer(config.vocab_size).save_pretrained(work)
    work.rename(folder)
    return folder


def make_tokenizer(size: int) -> Any:
    """Return a tokenizer whose words are the ids: t0 t1 t2 ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t1")


def packed_rows(
    count: int, length: int, vocabulary: int, *, whole: bool = False
) -> list[dict[str, Any]]:
    """Return rows of about five documents, or of one, random, full to the last token."""
    draw, rows = random.Random(0), []
    for _ in range(count):
        lengths: list[int] = [length] if whole else []
        while (left := length - sum(lengths)) > 0:
            lengths.append(min(left, max(8, round(length / 5 * draw.lognormvariate(0, 0.5)))))
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        row = {"input_ids": ids, "labels": ids, "seq_lengths": lengths}
        rows.append({**row, "doc_groups": [0] * len(lengths)})
    return rows


# ---------------------------------------------------------------- attention


def attention(setting: Setting) -> Iterator[Figure]:
    """Each back end: outputs and gradients beside a dense mask in float64, and its time."""
    from dualign.attention.backends import BACKENDS
    from dualign.attention.scores import Scores
    from dualign.attention.segments import branch_segments, document_segments

    short, long = (24, 64) if setting.tiny else (200, 1024)
    scores = Scores(scale=None, window=None)
    for dtype in (torch.float32, torch.bfloat16):
        for name, segments in (
            ("documents", document_segments([short, 5, 2 * short])),
            ("shared prompts", branch_segments([short, 3], [[7, 9], [5, short]])),
        ):
            placed = segments.to(setting.device)
            for backend in BACKENDS:
                query, key, value = _queries(placed.positions.numel(), dtype, setting.device)
                if backend.fits(query, value, scores):
                    error, cosine = _beside_dense(backend.attend, query, key, value, placed, scores)
                    what = f"{backend.name}, {name}, {str(dtype).removeprefix('torch.')}"
                    yield _figure(f"error: {what}", "share of the largest", error)
                    yield _figure(f"gradient: {what}", "1 - cosine", 1 - cosine)
    dtype = torch.float32 if setting.device.type == "cpu" else torch.bfloat16
    placed = document_segments([long] * (2 if setting.tiny else 16)).to(setting.device)
    for backend in BACKENDS:
        query, key, value = _queries(placed.positions.numel(), dtype, setting.device, heads=16)
        if backend.fits(query, value, scores):
            inputs = (query, key, value, placed, scores)
            seconds = _seconds(partial(_forth_and_back, backend.attend, *inputs))
            what = f"time: {backend.name}, {placed.positions.numel():,} tokens"
            yield _figure(what, "ms", 1000 * seconds)
    yield from _isolation(setting)


def _queries(
    tokens: int, dtype: torch.dtype, device: torch.device, *, heads: int = 4
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, tokens, 64), (1, heads // 4, tokens, 64), (1, heads // 4, tokens, 64))
    tensors = (torch.randn(shape, generator=generator) for shape in shapes)
    return tuple(tensor.to(device, dtype).requires_grad_() for tensor in tensors)


def _forth_and_back(
    attend: Callable[..., torch.Tensor], *inputs: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the output [1, T, N, H], and the gradients of its product with fixed numbers."""
    tensors = inputs[:3]
    output = attend(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).reshape(output.shape)
    gradients = torch.autograd.grad((output.double() * weights.double()).sum(), tensors)
    return output.detach(), list(gradients)


def _dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Any, _: Any
) -> torch.Tensor:
    """Return attention by a mask [T, T], written from the definition of segments alone."""
    tokens = query.shape[2]
    index = segments.key_index
    index = torch.arange(tokens) if index is None else index.cpu()
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    start = first = 0
    for queries, keys in zip(segments.query_lengths, segments.key_lengths, strict=True):
        for i in range(queries):  # the last query sees all keys, the one before it all but the last
            seen[start + i, index[first : first + keys - queries + i + 1]] = True
        start, first = start + queries, first + keys
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    products = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    products = products.masked_fill(~seen.to(query.device), float("-inf"))
    return (products.softmax(-1) @ value).transpose(1, 2)


def _beside_dense(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Any,
    scores: Any,
) -> tuple[float, float]:
    """Return the largest error of the output, as a share of the largest, and the gradients' cosine."""
    output, gradients = _forth_and_back(attend, query, key, value, segments, scores)
    exact = (tensor.detach().cpu().double().requires_grad_() for tensor in (query, key, value))
    expected, wanted = _forth_and_back(_dense, *exact, segments.to("cpu"), scores)
    error = (output.cpu().double() - expected).abs().max() / expected.abs().max()
    flat, flat_wanted = (
        torch.cat([tensor.cpu().double().flatten() for tensor in tensors])
        for tensors in (gradients, wanted)
    )
    return float(error), float(torch.cosine_similarity(flat, flat_wanted, dim=0))


def _isolation(setting: Setting) -> Iterator[Figure]:
    """A packed document's logits beside those of the document alone, in a whole model."""
    from transformers import AutoModelForCausalLM

    from dualign.attention.function import ATTENTION
    from dualign.attention.segments import document_segments

    folder = make_model(setting, "135m")
    lengths = (40, 7, 90)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=ATTENTION
        ).to(setting.device)
        ids = torch.randint(3, 500, (1, sum(lengths)), device=setting.device)
        with torch.no_grad():
            together = _logits(model, ids, document_segments(lengths), setting.device)
            alone = [
                _logits(model, part, document_segments([part.shape[1]]), setting.device)
                for part in ids.split(list(lengths), dim=1)
            ]
        error = (together - torch.cat(alone, dim=1)).abs().max() / together.abs().max()
        what = f"isolation of packed documents, {str(dtype).removeprefix('torch.')}"
        yield _figure(what, "share of the largest logit", float(error))


def _logits(model: Any, ids: torch.Tensor, segments: Any, device: torch.device) -> torch.Tensor:
    placed = segments.to(device)
    output = model(input_ids=ids, position_ids=placed.positions[None], segments=placed)
    logits: torch.Tensor = output.logits.float()
    return logits


# ---------------------------------------------------------------- training


def training(what: Training) -> Callable[[Setting], Iterator[Figure]]:
    """Return the part that trains on both sides."""

    def run(setting: Setting) -> Iterator[Figure]:
        sides: dict[str, dict[str, float]] = {}
        for side, make in (("dualign", _dualign_trainer), ("trl", _trl_trainer)):
            try:
                sides[side] = _train(setting, what, make)
            except Exception as error:  # the other side goes on
                yield {"part": "", "what": f"failed: {side}", "failed": _words(error)}
        ours, theirs = sides.get("dualign", {}), sides.get("trl", {})
        for name, unit in (("speed", "pairs/s" if what.pairs else "tokens/s"), ("peak", "GB")):
            yield _figure(name, unit, ours.get(name), theirs.get(name))
        yield _figure("operations", "share of the card's peak", ours.get("mfu"), theirs.get("mfu"))
        yield _figure("loss of the last step", "", ours.get("loss"), theirs.get("loss"))
        if "estimate" in ours:
            yield _figure("memory estimate", "GB", ours["estimate"])

    return run


def long_row(what: Training) -> Callable[[Setting], Iterator[Figure]]:
    """Return the part that trains on rows of one long document."""

    def run(setting: Setting) -> Iterator[Figure]:
        figures = _train(setting, what, _dualign_trainer)
        yield _figure("speed", "tokens/s", figures["speed"])
        yield _figure("peak", "GB", figures.get("peak"))
        yield _figure("memory estimate", "GB", figures["estimate"])
        yield _figure("last loss", "", figures["loss"])

    return run


def _train(setting: Setting, what: Training, make: Callable[..., Any]) -> dict[str, float]:
    """Train a step that warms up and a few more; return their figures."""
    from transformers import PrinterCallback, TrainerCallback

    steps = 2 if setting.tiny or what.is_long else 8
    model = make_model(setting, what.shape)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    rows, length = _rows(setting, what, (steps + 1) * what.batch, vocabulary)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            _synchronize()
            times.append(time.perf_counter())

    with _measured_memory() as peak, tempfile.TemporaryDirectory() as work:
        trainer = make(what, model, rows, length, steps + 1, Path(work))
        trainer.add_callback(Clock())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = (times[-1] - times[0]) / steps
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        del trainer
    tokens = sum(map(_row_tokens, rows)) / (steps + 1)
    figures = {"loss": float(losses[-1])} | ({"peak": peak()} if torch.cuda.is_available() else {})
    figures["speed"] = (what.batch if what.pairs else tokens) / seconds
    return figures | _reckoned(what, model, length, tokens / seconds, ours=make is _dualign_trainer)


def _rows(
    setting: Setting, what: Training, count: int, vocabulary: int
) -> tuple[list[dict[str, Any]], int]:
    """Return rows, and their longest length in tokens."""
    if what.pairs:
        pairs = pairs_of(_PAIRS.shrunk(16) if setting.tiny else _PAIRS, count, vocabulary)
        longest = max(
            len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
            for pair in pairs
        )
        return pairs, longest
    if what.is_long:
        length = what.tokens // 16 if setting.tiny else what.tokens
        return packed_rows(count, length, vocabulary, whole=True), length
    length = 64 if setting.tiny else what.tokens
    return packed_rows(count, length, vocabulary), length


def _row_tokens(row: Mapping[str, Any]) -> int:
    """Count the tokens of a row; of a pair, its prompt twice, as TRL computes it."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def _arguments(what: Training, steps: int) -> dict[str, Any]:
    """Return what both sides are given; all else is each side's default."""
    return {
        "per_device_train_batch_size": what.batch,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def _stage(what: Training, model: Path, length: int, steps: int) -> Any:
    from dualign.data.config import DataConfig, SourceConfig
    from dualign.preference.config import PreferenceStage
    from dualign.sft.config import SFTStage
    from dualign.training.adapter import AdapterConfig
    from dualign.training.precision import resolved

    train = {k: v for k, v in _arguments(what, steps).items() if k != "seed"}
    if what.offloaded and torch.accelerator.is_available():
        train["activation_offloading"] = True
    source = (SourceConfig(path="rows.jsonl"),)
    common: dict[str, Any] = {"name": "gpu", "model": str(model), "train": train}
    common |= {"lora": None if what.weights == "full" else AdapterConfig(r=16)}
    common |= {"quantization": "nf4" if what.weights == "nf4" else None, "tiled_mlp": what.tiled}
    if what.pairs:
        data = DataConfig(sources=source, max_tokens=length, packing="none")
        return resolved(PreferenceStage(data=data, **common))
    return resolved(SFTStage(data=DataConfig(sources=source, max_tokens=length), **common))


def _dualign_trainer(
    what: Training, model: Path, rows: list[dict[str, Any]], length: int, steps: int, work: Path
) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    from dualign.data.prepare import PairData, SFTData
    from dualign.models.source import resolve_model
    from dualign.stages import stage_kind

    stage = _stage(what, model, length, steps)
    common: dict[str, Any] = {"train": Dataset.from_list(rows), "validation": None}
    common |= {"groups": (("no_think", "rows"),), "rows": {}, "sources": ()}
    data = PairData(**common) if what.pairs else SFTData(fill=1.0, **common)
    tokenizer = AutoTokenizer.from_pretrained(model)
    build = stage_kind(stage.kind).builder
    return build(stage, resolve_model(str(model)), data, tokenizer, work, seed=0)


def _trl_trainer(
    what: Training, model: Path, rows: list[dict[str, Any]], length: int, steps: int, work: Path
) -> Any:
    """Return TRL's trainer as its users set it up: bfloat16 weights under an adapter, fast attention."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    class TokenizedPairs(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    on_gpu = torch.accelerator.is_available()
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    arguments = _arguments(what, steps) | {"output_dir": str(work), "max_length": None}
    arguments |= {"use_cpu": not on_gpu, "bf16": on_gpu}
    common: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(model, **_trl_options(what, on_gpu)),
        "processing_class": AutoTokenizer.from_pretrained(model),
        "peft_config": None if what.weights == "full" else lora,
    }
    table = Dataset.from_list(rows)
    if what.pairs:
        settings = DPOConfig(**arguments, loss_type="apo_zero")
        return TokenizedPairs(args=settings, train_dataset=table.remove_columns("group"), **common)
    settings = SFTConfig(**arguments, packing=True, dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(args=settings, train_dataset=table.remove_columns("doc_groups"), **common)


def _trl_options(what: Training, on_gpu: bool) -> dict[str, Any]:
    from importlib.util import find_spec

    half = on_gpu and what.weights != "full"
    options: dict[str, Any] = {"dtype": torch.bfloat16 if half else torch.float32}
    if on_gpu and find_spec("flash_attn") and half:
        options["attn_implementation"] = "flash_attention_2"
    if what.weights == "nf4":
        from dualign.models.loading import nf4_options

        dtype = "bfloat16" if half else "float32"
        options |= nf4_options(dtype, "cuda:0" if on_gpu else "cpu")
    return options


def _reckoned(
    what: Training, model: Path, length: int, tokens_per_second: float, *, ours: bool
) -> dict[str, float]:
    """Return the share of the card's peak, and for dualign its memory estimate."""
    from dualign.cost.memory import estimate
    from dualign.cost.model_shape import ModelShape
    from dualign.cost.speed import peak_flops, training_flops
    from dualign.cost.stage_shape import training_shape
    from dualign.models.device import gpu_name

    shape = ModelShape.from_folder(model)
    step = training_shape(_stage(what, model, length, 1), longest=length)
    plain = replace(step, gradient_checkpointing=False)  # recomputation isn't the model's work
    operations = training_flops(shape, plain, 10**6) / 10**6
    peak = peak_flops(gpu_name() or "")
    figures = {"mfu": operations * tokens_per_second / peak} if peak else {}
    return figures | ({"estimate": estimate(shape, step).total / 1e9} if ours else {})


# ---------------------------------------------------------------- generation


def generation(setting: Setting) -> Iterator[Figure]:
    """Tokens per second of greedy answers, as an evaluation asks for them."""
    from transformers import AutoTokenizer

    from dualign.generation.generate import generate
    from dualign.generation.sampling import Sampling
    from dualign.models.loading import load_model

    count, limit = (3, 4) if setting.tiny else (128, 128)
    for name in ("135m",) if setting.tiny else ("135m", "1.7b"):
        folder = make_model(setting, name)
        model, tokenizer = load_model(str(folder)), AutoTokenizer.from_pretrained(folder)
        draw = random.Random(0)
        prompts = [
            " ".join(f"t{draw.randrange(3, 500)}" for _ in range(8 if setting.tiny else 200))
            for _ in range(count)
        ]
        generate(model, tokenizer, prompts[:2], Sampling(max_new_tokens=2))  # warms up
        _synchronize()
        start = time.perf_counter()
        answers = generate(model, tokenizer, prompts, Sampling(max_new_tokens=limit))
        _synchronize()
        tokens = sum(len(answer.token_ids) for answer in answers)
        speed = tokens / (time.perf_counter() - start)
        yield _figure(f"{name}, {count} prompts at once", "tokens/s", speed)


# ---------------------------------------------------------------- the parts


def _figure(what: str, unit: str, dualign: float | None, trl: float | None = None) -> Figure:
    return {"part": "", "what": what, "unit": unit, "dualign": dualign, "trl": trl}


def _trainings() -> Iterator[tuple[str, Part]]:
    for shape, batch in (("135m", 8), ("1.7b", 4)):
        for stage in ("sft", "apo"):
            for weights in ("lora", "full") if shape == "135m" else ("lora", "nf4", "full"):
                what = Training(pairs=stage == "apo", shape=shape, weights=weights, batch=batch)
                seconds = 40 if shape == "135m" else 60
                yield f"{stage}-{shape}-{weights}", Part(run=training(what), seconds=seconds)


def _long_rows() -> Iterator[tuple[str, Part]]:
    """Plain, in tiles, and in tiles with what layers keep in the host's memory."""
    for tokens in (4096, 16384, 65536):
        for way, switches in (("plain", 0), ("tiled", 1), ("offloaded", 2)):
            what = Training(
                pairs=False,
                shape="1.7b",
                weights="lora",
                batch=1,
                tokens=tokens,
                tiled=switches > 0,
                offloaded=switches > 1,
            )
            yield f"long-{tokens // 1024}k-{way}", Part(run=long_row(what), seconds=90)


PARTS: Mapping[str, Part] = {
    "attention": Part(run=attention, seconds=90),
    **dict(_trainings()),
    "generation": Part(run=generation, seconds=60),
}
LONG: Mapping[str, Part] = dict(_long_rows())


def _part(name: str) -> Part:
    return LONG[name] if name in LONG else PARTS[name]


def run_part(name: str, setting: Setting) -> list[Figure]:
    """Return the figures of a part; what it had before it failed, and why it failed."""
    figures: list[Figure] = []
    start = time.perf_counter()
    try:
        figures.extend({**figure, "part": name} for figure in _part(name).run(setting))
    except Exception as error:  # the other parts go on
        figures.append({"part": name, "what": "failed", "failed": _words(error)})
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    seconds = time.perf_counter() - start
    return [*figures, {**_figure("took", "s", seconds), "part": name}]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Return the time of the fastest of a few calls, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        _synchronize()
        start = time.perf_counter()
        call()
        _synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


@contextmanager
def _measured_memory() -> Iterator[Callable[[], float]]:
    """Give the peak in GB of the card since the context began."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield lambda: torch.cuda.max_memory_allocated() / 1e9


# ---------------------------------------------------------------- processes and tables


def in_workers(names: Sequence[str], setting: Setting) -> Iterator[Figure]:
    """Go through the parts in a worker; start another one after a part that hangs or ends it."""
    end = time.monotonic() + LIMIT_SECONDS
    left = list(names)
    while left:
        if time.monotonic() > end:
            yield from ({"part": name, "what": "failed", "failed": "no time left"} for name in left)
            return
        finished, figures = _one_worker(left, setting, end)
        yield from figures
        left = left[finished:]


def _one_worker(names: Sequence[str], setting: Setting, end: float) -> tuple[int, list[Figure]]:
    """Return how many parts are dealt with, and their figures; at least one is."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", str(setting.folder)]
    command += ["--tiny"] * setting.tiny + ["--parts", *names]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    figures: list[Figure] = []
    try:
        for number, name in enumerate(names):
            start_up = 90 if number == 0 else 0
            seconds = min(_part(name).seconds + start_up, max(1.0, end - time.monotonic()))
            try:
                line = lines.get(timeout=seconds)
            except queue.Empty:
                text = f"took more than {seconds:.0f} s"
                return number + 1, [*figures, {"part": name, "what": "failed", "failed": text}]
            if line is None:
                text = f"its process ended with {process.wait()}"
                return number + 1, [*figures, {"part": name, "what": "failed", "failed": text}]
            figures += json.loads(line)
        return len(names), figures
    finally:
        process.kill()
        process.wait()


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(_RESULT):
            lines.put(line.removeprefix(_RESULT))
    lines.put(None)


def facts() -> dict[str, Any]:
    """Return the card, versions and the command."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    card, memory = "no GPU", 0.0
    if torch.cuda.is_available():
        card = torch.cuda.get_device_name(0)
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return {
        "card": card,
        "memory_gb": round(memory, 1),
        "cuda": torch.version.cuda,
        "versions": versions,
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| part | figure | dualign | TRL | ratio | unit |", "|---|---|---|---|---|---|"]
    for figure in figures:
        if "failed" in figure:
            lines.append(f"| {figure['part']} | {figure['what']}: {figure['failed']} | | | | |")
            continue
        ours, theirs = figure["dualign"], figure["trl"]
        ratio = f"{ours / theirs:.2f}" if ours and theirs else ""
        numbers = " | ".join(_number(number) for number in (ours, theirs))
        lines.append(
            f"| {figure['part']} | {figure['what']} | {numbers} | {ratio} | {figure['unit']} |"
        )
    return "\n".join(lines)


def _number(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, *LONG])
    parser.add_argument("--long", action="store_true", help="the parts of long rows alone")
    parser.add_argument("--tiny", action="store_true", help="models of two layers, in this process")
    parser.add_argument("--json", type=Path, help="a file for the figures, with card and versions")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts = options.parts or list(LONG if options.long else PARTS)
    if options.worker:
        setting = Setting(folder=options.worker, tiny=options.tiny)
        for name in options.parts:
            print(_RESULT + json.dumps(run_part(name, setting)), flush=True)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="dualign-gpu-"))
    try:
        setting = Setting(folder=folder, tiny=options.tiny)
        if options.tiny:
            figures = [figure for name in options.parts for figure in run_part(name, setting)]
        else:
            figures = list(in_workers(options.parts, setting))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps({**facts(), "figures": figures}, indent=2) + "\n")
    return int(any("failed" in figure for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
