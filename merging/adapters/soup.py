"""Adapters of one base -> one adapter, by what they do to the weights: their true changes.

`linear` is their weighted sum: exact with the ranks side by side, or cut to a rank without the sum ever being formed.
The methods that look at single elements (ties, dare, ...) work on the changes `s B A` themselves, of one module at a
time, and what comes out has all ranks, so it is cut. Work on the factors, as PEFT's `ties` and `linear` do it, merges
neither the changes nor anything else: (A1 + A2)(B1 + B2) has the products of one adapter's A with the other's B.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dualign.checkpoints.adapters import module_paths, read_summands, stack_ranks, write_adapter
from dualign.checkpoints.lora import Adapter, LoraModule, to_float64
from dualign.errors import ConfigError
from dualign.merging.adapters.lowrank import Cut, LowRank, approximate, truncate
from dualign.merging.adapters.output import (
    Kept,
    copy_tokenizer,
    kept_of,
    write_record,
)
from dualign.merging.adapters.parameters import LINEAR, method_arguments
from dualign.merging.methods.random import stream
from dualign.merging.methods.table import METHODS
from dualign.merging.methods.tensors import Array, Read, Tensors, materialize
from dualign.rundir import new_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Soup:
    """What is made of which adapters."""

    adapters: tuple[Path, ...]
    weights: tuple[float, ...] | None = None
    """None: the mean"""
    method: str = LINEAR
    """linear, or a method of `dualign merge` that works on changes"""
    parameters: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """the method's own: one number for all adapters, or one for each"""
    cut: Cut | None = None
    """None: all ranks"""
    seed: int = 0
    tokenizer_from: Path | None = None


def soup(meant: Soup, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the adapter to `out`; returns what adapter.json says.

    Raises:
        MergeError, ConfigError: the adapters can't be merged, or not in this way.
        CheckpointError: a file is missing or broken, or `out` is there already.
    """
    merge, weights = _merger(meant)
    adapters = read_summands(meant.adapters, weights)
    with new_folder(out, force=force) as work:
        modules, kept = {}, {}
        for path in tqdm(module_paths(adapters), desc=f"merging {out.name}", disable=None):
            modules[path], kept[path] = merge(stack_ranks(adapters, weights, path), adapters, path)
        write_adapter(work, modules, adapters)
        copy_tokenizer(meant.adapters, work, chosen=meant.tokenizer_from)
        inputs = {
            str(one.folder): [one.file, one.folder / "adapter_config.json"] for one in adapters
        }
        return write_record(work, _about(meant, adapters[0], weights), inputs, kept)


Merger = Callable[[LoraModule, Sequence[Adapter], str], tuple[LoraModule, Kept]]
"""(the weighted sum of one module's changes, the adapters, the module's path) -> the result"""


def _merger(meant: Soup) -> tuple[Merger, Sequence[float]]:
    count, cut = len(meant.adapters), meant.cut
    weights = meant.weights or [1 / count] * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} adapters")
    if meant.method == LINEAR:
        if meant.parameters:
            raise ConfigError(
                f"linear: takes weights and nothing else, not {next(iter(meant.parameters))}"
            )
        return (lambda total, _adapters, _path: _linear(total, cut)), weights
    arguments = method_arguments(meant.method, meant.parameters, weights=meant.weights, count=count)
    if cut is None:
        raise ConfigError(
            f"{meant.method}: the result has all ranks, so it isn't an adapter as it is; say where "
            "to cut it, with --rank or --energy"
        )

    def merge(total: LoraModule, adapters: Sequence[Adapter], path: str) -> tuple[LoraModule, Kept]:
        tensors = changes(adapters, path, total.shape, seed=meant.seed)
        merged = materialize(METHODS[meant.method].function(tensors, **arguments), total.shape)
        turned = merged.T if total.embedding else merged
        found = approximate(turned, cut, key=stream(meant.seed, count, path))
        return low_rank_module(found, embedding=total.embedding), kept_of(found)

    return merge, weights


def _linear(total: LoraModule, cut: Cut | None) -> tuple[LoraModule, Kept]:
    B_OR, A_RI = to_float64(total.B), to_float64(total.A)
    if cut is None:
        square = float(np.sum((B_OR.T @ B_OR) * (A_RI @ A_RI.T)))  # |B A|^2
        return total, Kept(rank=total.rank, norm=math.sqrt(max(square, 0)), error=0.0)
    found = truncate(B_OR, A_RI, cut)
    return low_rank_module(found, embedding=total.embedding), kept_of(found)


def low_rank_module(found: LowRank, *, embedding: bool) -> LoraModule:
    """`B @ A` as a module of an adapter; its scaling is 1."""
    A, B = (torch.from_numpy(np.ascontiguousarray(one)) for one in (found.A_RI, found.B_OR))
    return LoraModule(A=A, B=B, scaling=1.0, embedding=embedding)


def changes(
    adapters: Sequence[Adapter], path: str, shape: tuple[int, int], *, seed: int
) -> Tensors:
    """The changes of one module as the methods want them, on a base of zeros, made block by block.

    Random methods draw what they draw in a merge of the folded models.
    """
    return Tensors(
        shape=shape,
        inputs=tuple(_change(one.modules.get(path), shape[1]) for one in adapters),
        base=_nothing,
        streams=tuple(stream(seed, i, f"{path}.weight") for i in range(len(adapters))),
    )


def _change(module: LoraModule | None, columns: int) -> Read:
    """Any stretch of a module's change; zeros where an adapter leaves the module alone."""
    if module is None:
        return _nothing
    rows = module.delta()

    def read(start: int, stop: int) -> Array:
        first, last = start // columns, -(-stop // columns)
        return rows(first, last).reshape(-1)[start - first * columns : stop - first * columns]

    return read


def _nothing(start: int, stop: int) -> Array:
    return np.zeros(stop - start)


def _about(meant: Soup, first: Adapter, weights: Sequence[float]) -> dict[str, Any]:
    cut = meant.cut
    return {
        "made_by": "soup",
        "method": meant.method,
        "weights": list(weights),
        "parameters": {name: list(values) for name, values in meant.parameters.items()},
        "seed": meant.seed,
        "rank": cut.rank if cut else None,
        "energy": cut.energy if cut else None,
        "base_model": first.config.get("base_model_name_or_path"),
        "revision": first.config.get("revision"),
    }
