"""A LoRA adapter from two checkpoints: the difference of each linear layer, truncated to a rank.

PEFT has low-rank changes of linear layers and embeddings alone. Other changed modules are kept
whole: as modules_to_save (norms, embeddings), or by `bias: all`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dualign.checkpoints.adapters import ranks_in_config, save_adapter, with_tied_head
from dualign.checkpoints.checkpoint import HEAD, Weights, embedding_name, is_tied, read_whole
from dualign.checkpoints.lora import LoraModule
from dualign.checkpoints.meta_model import build_meta_model, linear_modules
from dualign.checkpoints.shards import PIECE, copy_files, nearest_file, tokenizer_files
from dualign.checkpoints.weights import find_folder, open_weights
from dualign.errors import MergeError
from dualign.merging.adapters.lowrank import LowRank, Truncation, approximate
from dualign.merging.adapters.output import TruncationReport, write_adapter_json
from dualign.merging.adapters.soup import to_lora
from dualign.merging.methods.random import stream
from dualign.merging.methods.tensors import Array
from dualign.model_ref import ModelRef
from dualign.rundir import new_folder
from dualign.terminal import progress

Embedding = Literal["save", "lora"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """Two checkpoints, and how their difference becomes an adapter."""

    base: str
    """a folder, hub id (maybe @revision) or embedded model: the adapter's base"""
    tuned: str
    truncation: Truncation
    embedding: Embedding = "save"
    """save: keep a changed embedding whole; lora: truncate it"""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Differences:
    """The modules that differ, by their form in the adapter."""

    linear: tuple[str, ...]
    embedding: tuple[str, ...]
    """truncated, like the linear ones"""
    whole: tuple[str, ...]
    biases: bool


def extract_adapter(config: ExtractConfig, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the adapter to `out`; return the content of adapter.json.

    Raises:
        MergeError: the two don't have the same tensors, or don't differ.
        CheckpointError: a file is missing or broken, or `out` exists.
    """
    base, tuned = open_weights(config.base), open_weights(config.tuned)
    _require_same_tensors(base, tuned)
    model = build_meta_model(base.config)
    changed = _differences(model, base, tuned, config.embedding)
    with new_folder(out, force=force) as work:
        modules: dict[str, LoraModule] = {}
        reports: dict[str, TruncationReport] = {}
        paths = (*changed.linear, *changed.embedding)
        with progress(len(paths), "extracting", unit="module") as bar:
            for path in paths:
                embedding = path in changed.embedding
                low_rank = _difference(base, tuned, path, config, transposed=embedding)
                modules[path] = to_lora(low_rank, embedding=embedding)
                reports[path] = TruncationReport.of(low_rank)
                bar.update()
        if changed.embedding and is_tied(base):
            modules = with_tied_head(modules)
        ranks = {path: report.rank for path, report in reports.items()}
        adapter_config = _adapter_config(config, model, base, changed, ranks)
        save_adapter(work, modules, adapter_config, others=_whole_tensors(tuned, changed, modules))
        copy_files([*tokenizer_files(tuned), *nearest_file(tuned, "generation_config.json")], work)
        about = {
            "made_by": "extract",
            "rank": config.truncation.rank,
            "energy": config.truncation.energy,
            "seed": config.seed,
            "base_model": adapter_config["base_model_name_or_path"],
            "revision": adapter_config["revision"],
            "whole": list(changed.whole),
            "biases": changed.biases,
        }
        inputs = {config.base: base.files, config.tuned: tuned.files}
        return write_adapter_json(work, about, inputs, reports)


def _require_same_tensors(base: Weights, tuned: Weights) -> None:
    if is_tied(base) != is_tied(tuned):
        tied, other = (base, tuned) if is_tied(base) else (tuned, base)
        raise MergeError(
            f"{tied.folders[0]} ties its head to the embedding, {other.folders[0]} doesn't; an adapter can't do that"
        )
    for name in sorted(set(base.entries) ^ set(tuned.entries)):
        holder = base if name in base.entries else tuned
        raise MergeError(f"only {holder.folders[0]} has the tensor {name}; are they of one kind?")
    for name, entry in base.entries.items():
        shape = tuned.entries[name].shape
        if shape != entry.shape:
            raise MergeError(
                f"{name} is {entry.shape} in {base.folders[0]} and {shape} in {tuned.folders[0]}; an adapter can't "
                "resize: give both the same vocabulary first"
            )


def _differences(
    model: nn.Module, base: Weights, tuned: Weights, embedding: Embedding
) -> _Differences:
    names = [name for name in base.entries if _differs(base, tuned, name)]
    if not names:
        raise MergeError(f"{base.folders[0]} and {tuned.folders[0]} don't differ in any number")
    linear = set(linear_modules(model))
    parts = [name.rpartition(".") for name in names]
    low_rank = {path for path, _, kind in parts if path in linear and kind == "weight"}
    embedding_path = (embedding_name(base.entries) or "").removesuffix(".weight")
    truncated = set()
    if embedding == "lora" and f"{embedding_path}.weight" in names:
        truncated = {embedding_path}
    return _Differences(
        linear=tuple(path for path in linear_modules(model) if path in low_rank),
        embedding=tuple(sorted(truncated)),
        whole=tuple(dict.fromkeys(p for p, _, _ in parts if p not in {*linear, *truncated})),
        biases=any(path in linear and kind == "bias" for path, _, kind in parts),
    )


def _differs(base: Weights, tuned: Weights, name: str) -> bool:
    first, other, size = base.reader(name), tuned.reader(name), base.entries[name].size
    step = first.step or other.step or PIECE
    ranges = [(start, min(start + step, size)) for start in range(0, size, step)]
    return any(not np.array_equal(first.read(*part), other.read(*part)) for part in ranges)


def _difference(
    base: Weights, tuned: Weights, path: str, config: ExtractConfig, *, transposed: bool
) -> LowRank:
    name = f"{path}.weight"
    D_OI: Array = read_whole(tuned, name).astype(np.float64)
    D_OI -= read_whole(base, name)
    change = D_OI.T if transposed else D_OI
    return approximate(change, config.truncation, key=stream(config.seed, 0, name))


def _whole_tensors(
    tuned: Weights, changed: _Differences, modules: Mapping[str, LoraModule]
) -> dict[str, Tensor]:
    """Return the tensors that are kept whole, by their names in the adapter's file."""
    names = {name: name for name in tuned.entries if name.rpartition(".")[0] in changed.whole}
    if changed.biases:
        for name in tuned.entries:
            path, _, kind = name.rpartition(".")
            if kind == "bias":
                names[name] = f"{path}.base_layer.bias" if path in modules else name
    tensors = {stored: _tensor(tuned, name) for name, stored in names.items()}
    embedding = embedding_name(tuned.entries)
    if is_tied(tuned) and embedding in names:
        tensors[HEAD] = tensors[embedding].clone()  # ensure_weight_tying stores it twice
    return tensors


def _tensor(weights: Weights, name: str) -> Tensor:
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    tensor = torch.from_numpy(np.ascontiguousarray(read_whole(weights, name)))
    return tensor.to(dtypes[weights.entries[name].dtype])


def _adapter_config(
    config: ExtractConfig,
    model: nn.Module,
    base: Weights,
    changed: _Differences,
    ranks: Mapping[str, int],
) -> dict[str, Any]:
    if not ranks:
        raise MergeError(
            f"{config.base} and {config.tuned}: no linear layer differs, so there is nothing of low rank; copy "
            f"{', '.join(changed.whole[:3])} instead"
        )
    ref = ModelRef.parse(config.base)
    name = str(find_folder(ref).resolve()) if ref.is_local else ref.name
    embedding = (embedding_name(base.entries) or "").removesuffix(".weight")
    return {
        **ranks_in_config(ranks),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": ref.revision,
        "target_modules": [*_targets(changed.linear, model), *changed.embedding],
        "modules_to_save": list(changed.whole) or None,
        "bias": "all" if changed.biases else "none",
        "ensure_weight_tying": is_tied(base) and embedding in {*changed.whole, *changed.embedding},
        "lora_dropout": 0.0,
    }


def _targets(paths: tuple[str, ...], model: nn.Module) -> list[str]:
    """Return the last parts of the paths (q_proj) if they select just these modules; else paths."""
    leaves = {path.rpartition(".")[2] for path in paths}
    selected = {path for path in linear_modules(model) if path.rpartition(".")[2] in leaves}
    return sorted(leaves) if selected == set(paths) else sorted(paths)
