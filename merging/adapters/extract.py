"""A LoRA adapter from two checkpoints: the difference of each linear layer, cut to a rank.

What isn't linear can't be low rank in PEFT: it is kept whole where it changed, as modules_to_save (norms, embeddings)
or `bias: all`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dualign.checkpoints.adapters import ranks_in_config, save_adapter, with_tied_head
from dualign.checkpoints.checkpoint import HEAD, Weights, embedding_name, is_tied, read_whole
from dualign.checkpoints.lora import LoraModule
from dualign.checkpoints.meta_model import build_meta_model, linear_modules
from dualign.checkpoints.shards import PIECE, nearest_file, tokenizer_files
from dualign.checkpoints.weights import find_folder, open_weights
from dualign.errors import MergeError
from dualign.merging.adapters.lowrank import Cut, LowRank, approximate
from dualign.merging.adapters.output import Kept, kept_of, write_record
from dualign.merging.adapters.soup import low_rank_module
from dualign.merging.methods.random import stream
from dualign.merging.methods.tensors import Array
from dualign.model_ref import ModelRef
from dualign.rundir import new_folder

Embedding = Literal["save", "lora"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """What is taken from what."""

    base: str
    """a folder, hub id (maybe @revision) or embedded model: the adapter's base"""
    tuned: str
    cut: Cut
    embedding: Embedding = "save"
    """whether an embedding that changed is kept whole, or as low rank"""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Changed:
    """The modules that differ, by what an adapter can do about them."""

    linear: tuple[str, ...]
    embedding: tuple[str, ...]
    """kept as low rank"""
    whole: tuple[str, ...]
    biases: bool


def extract(meant: Extraction, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the adapter to `out`; returns what adapter.json says.

    Raises:
        MergeError: the two don't have the same tensors, or don't differ.
        CheckpointError: a file is missing or broken, or `out` is there already.
    """
    base, tuned = open_weights(meant.base), open_weights(meant.tuned)
    _require_same_tensors(base, tuned)
    model = build_meta_model(base.config)
    changed = _sort(model, base, tuned, meant.embedding)
    with new_folder(out, force=force) as work:
        modules: dict[str, LoraModule] = {}
        kept: dict[str, Kept] = {}
        for path in tqdm((*changed.linear, *changed.embedding), desc="extracting", disable=None):
            found = _difference(base, tuned, path, meant, turned=path in changed.embedding)
            modules[path] = low_rank_module(found, embedding=path in changed.embedding)
            kept[path] = kept_of(found)
        if changed.embedding and is_tied(base):
            modules = with_tied_head(modules)
        config = _config(
            meant, model, base, changed, {path: one.rank for path, one in kept.items()}
        )
        save_adapter(work, modules, config, others=_wholes(tuned, changed, modules))
        for name in [*tokenizer_files(tuned), *nearest_file(tuned, "generation_config.json")]:
            (work / name.name).write_bytes(name.read_bytes())
        about = {
            "made_by": "extract",
            "rank": meant.cut.rank,
            "energy": meant.cut.energy,
            "seed": meant.seed,
            "base_model": config["base_model_name_or_path"],
            "revision": config["revision"],
            "whole": list(changed.whole),
            "biases": changed.biases,
        }
        inputs = {meant.base: base.files, meant.tuned: tuned.files}
        return write_record(work, about, inputs, kept)


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


def _sort(model: nn.Module, base: Weights, tuned: Weights, embedding: Embedding) -> _Changed:
    names = [name for name in base.entries if _differs(base, tuned, name)]
    if not names:
        raise MergeError(f"{base.folders[0]} and {tuned.folders[0]} don't differ in any number")
    linear = set(linear_modules(model))
    parts = [name.rpartition(".") for name in names]
    low_rank = {path for path, _, kind in parts if path in linear and kind == "weight"}
    vocabulary = (embedding_name(base.entries) or "").removesuffix(".weight")
    as_low_rank = {vocabulary} if embedding == "lora" and f"{vocabulary}.weight" in names else set()
    return _Changed(
        linear=tuple(path for path in linear_modules(model) if path in low_rank),
        embedding=tuple(sorted(as_low_rank)),
        whole=tuple(dict.fromkeys(p for p, _, _ in parts if p not in {*linear, *as_low_rank})),
        biases=any(path in linear and kind == "bias" for path, _, kind in parts),
    )


def _differs(base: Weights, tuned: Weights, name: str) -> bool:
    one, other, size = base.reader(name), tuned.reader(name), base.entries[name].size
    step = one.step or other.step or PIECE
    ranges = [(start, min(start + step, size)) for start in range(0, size, step)]
    return any(not np.array_equal(one.read(*at), other.read(*at)) for at in ranges)


def _difference(
    base: Weights, tuned: Weights, path: str, meant: Extraction, *, turned: bool
) -> LowRank:
    name = f"{path}.weight"
    D_OI: Array = read_whole(tuned, name).astype(np.float64)
    D_OI -= read_whole(base, name)
    return approximate(D_OI.T if turned else D_OI, meant.cut, key=stream(meant.seed, 0, name))


def _wholes(
    tuned: Weights, changed: _Changed, modules: Mapping[str, LoraModule]
) -> dict[str, Tensor]:
    """Whole tensors by their names in the file."""
    names = {name: name for name in tuned.entries if name.rpartition(".")[0] in changed.whole}
    if changed.biases:
        for name in tuned.entries:
            path, _, kind = name.rpartition(".")
            if kind == "bias":
                names[name] = f"{path}.base_layer.bias" if path in modules else name
    found = {stored: _tensor(tuned, name) for name, stored in names.items()}
    embedding = embedding_name(tuned.entries)
    if is_tied(tuned) and embedding in names:
        found[HEAD] = found[embedding].clone()  # ensure_weight_tying has it twice
    return found


def _tensor(weights: Weights, name: str) -> Tensor:
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    read = torch.from_numpy(np.ascontiguousarray(read_whole(weights, name)))
    return read.to(dtypes[weights.entries[name].dtype])


def _config(
    meant: Extraction, model: nn.Module, base: Weights, changed: _Changed, ranks: Mapping[str, int]
) -> dict[str, Any]:
    if not ranks:
        raise MergeError(
            f"{meant.base} and {meant.tuned}: no linear layer differs, so there is nothing of low rank; copy "
            f"{', '.join(changed.whole[:3])} instead"
        )
    ref = ModelRef.parse(meant.base)
    name = str(find_folder(ref).resolve()) if ref.is_local else ref.name
    touched = {*changed.whole, *changed.embedding}
    vocabulary = (embedding_name(base.entries) or "").removesuffix(".weight")
    return {
        **ranks_in_config(ranks),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": ref.revision,
        "target_modules": [*_targets(changed.linear, model), *changed.embedding],
        "modules_to_save": list(changed.whole) or None,
        "bias": "all" if changed.biases else "none",
        "ensure_weight_tying": is_tied(base) and vocabulary in touched,
        "lora_dropout": 0.0,
    }


def _targets(paths: tuple[str, ...], model: nn.Module) -> list[str]:
    """The last parts of the names (q_proj), if that means these modules and no others; else whole paths."""
    leaves = {path.rpartition(".")[2] for path in paths}
    meant = {path for path in linear_modules(model) if path.rpartition(".")[2] in leaves}
    return sorted(leaves) if meant == set(paths) else sorted(paths)
