"""Adapters of one base -> one adapter, by their true changes to the weights.

`linear` is the weighted sum of the changes: exact with the ranks side by side, or truncated to a
rank without forming the sum. Methods that look at single elements (ties, dare, ...) work on the
changes `s B A` themselves, one module at a time; their result has full rank, so it is truncated.
Merging the factors, as PEFT's `ties` and `linear` do, doesn't merge the changes: (A1 + A2)(B1 + B2)
has the products of one adapter's A with the other's B.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualign.checkpoints.adapters import module_paths, read_summands, stack_ranks, write_adapter
from dualign.checkpoints.lora import Adapter, LoraModule, to_float64
from dualign.errors import ConfigError
from dualign.merging.adapters.lowrank import LowRank, Truncation, approximate, truncate
from dualign.merging.adapters.output import (
    TruncationReport,
    copy_tokenizer,
    write_adapter_json,
)
from dualign.merging.adapters.parameters import LINEAR, method_arguments
from dualign.merging.methods.random import stream
from dualign.merging.methods.table import METHODS
from dualign.merging.methods.tensors import Array, Read, Tensors, materialize
from dualign.rundir import new_folder
from dualign.terminal import progress


@dataclass(frozen=True, kw_only=True, slots=True)
class SoupConfig:
    """Adapters, and the method that merges them."""

    adapters: tuple[Path, ...]
    weights: tuple[float, ...] | None = None
    """None: the mean"""
    method: str = LINEAR
    """linear, or a method of `dualign merge` that works on changes"""
    parameters: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """the method's: one number for all adapters, or one for each"""
    truncation: Truncation | None = None
    """None: all ranks"""
    seed: int = 0
    tokenizer_from: Path | None = None


def make_soup(config: SoupConfig, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the adapter to `out`; return the content of adapter.json.

    Raises:
        MergeError, ConfigError: the adapters can't be merged, or not by this method.
        CheckpointError: a file is missing or broken, or `out` exists.
    """
    merge, weights = _merge_function(config)
    adapters = read_summands(config.adapters, weights)
    with new_folder(out, force=force) as work:
        modules, reports = {}, {}
        paths = module_paths(adapters)
        with progress(len(paths), f"merging {out.name}", unit="module") as bar:
            for path in paths:
                total = stack_ranks(adapters, weights, path)
                modules[path], reports[path] = merge(total, adapters, path)
                bar.update()
        write_adapter(work, modules, adapters)
        copy_tokenizer(config.adapters, work, chosen=config.tokenizer_from)
        inputs = {
            str(adapter.folder): [adapter.file, adapter.folder / "adapter_config.json"]
            for adapter in adapters
        }
        return write_adapter_json(work, _about(config, adapters[0], weights), inputs, reports)


_MergeModule = Callable[[LoraModule, Sequence[Adapter], str], tuple[LoraModule, TruncationReport]]
"""(weighted sum of a module's changes, adapters, path of the module) -> (merged module, report)"""


def _merge_function(config: SoupConfig) -> tuple[_MergeModule, Sequence[float]]:
    count, truncation = len(config.adapters), config.truncation
    weights = config.weights or [1 / count] * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} adapters")
    if config.method == LINEAR:
        if config.parameters:
            raise ConfigError(
                f"linear: takes weights and nothing else, not {next(iter(config.parameters))}"
            )
        return (lambda total, _adapters, _path: _linear(total, truncation)), weights
    arguments = method_arguments(
        config.method, config.parameters, weights=config.weights, count=count
    )
    if truncation is None:
        raise ConfigError(
            f"{config.method}: the result has all ranks, so it isn't an adapter as it is; say where "
            "to cut it, with --rank or --energy"
        )

    def merge(
        total: LoraModule, adapters: Sequence[Adapter], path: str
    ) -> tuple[LoraModule, TruncationReport]:
        tensors = _changes(adapters, path, total.shape, seed=config.seed)
        combine = METHODS[config.method].function(tensors, **arguments)
        merged = materialize(combine, total.shape)
        change = merged.T if total.embedding else merged
        low_rank = approximate(change, truncation, key=stream(config.seed, count, path))
        return to_lora(low_rank, embedding=total.embedding), TruncationReport.of(low_rank)

    return merge, weights


def _linear(
    total: LoraModule, truncation: Truncation | None
) -> tuple[LoraModule, TruncationReport]:
    B_OR, A_RI = to_float64(total.B), to_float64(total.A)
    if truncation is None:
        square = float(np.sum((B_OR.T @ B_OR) * (A_RI @ A_RI.T)))  # |B A|^2
        report = TruncationReport(rank=total.rank, norm=math.sqrt(max(square, 0)), error=0.0)
        return total, report
    low_rank = truncate(B_OR, A_RI, truncation)
    return to_lora(low_rank, embedding=total.embedding), TruncationReport.of(low_rank)


def to_lora(low_rank: LowRank, *, embedding: bool) -> LoraModule:
    """Return `B @ A` as a module of an adapter, with a scaling of 1."""
    A, B = (
        torch.from_numpy(np.ascontiguousarray(factor)) for factor in (low_rank.A_RI, low_rank.B_OR)
    )
    return LoraModule(A=A, B=B, scaling=1.0, embedding=embedding)


def _changes(
    adapters: Sequence[Adapter], path: str, shape: tuple[int, int], *, seed: int
) -> Tensors:
    """Return the changes of one module as inputs of a method, on a base of zeros.

    Random methods draw the same numbers as in a merge of the folded models.
    """
    return Tensors(
        shape=shape,
        inputs=tuple(_change(adapter.modules.get(path), shape[1]) for adapter in adapters),
        base=_zeros,
        streams=tuple(stream(seed, i, f"{path}.weight") for i in range(len(adapters))),
    )


def _change(module: LoraModule | None, columns: int) -> Read:
    """Return a reader of a module's change; zeros if the adapter doesn't have the module."""
    if module is None:
        return _zeros
    rows = module.delta()

    def read(start: int, stop: int) -> Array:
        first, last = start // columns, -(-stop // columns)
        return rows(first, last).reshape(-1)[start - first * columns : stop - first * columns]

    return read


def _zeros(start: int, stop: int) -> Array:
    return np.zeros(stop - start)


def _about(config: SoupConfig, first: Adapter, weights: Sequence[float]) -> dict[str, Any]:
    truncation = config.truncation
    return {
        "made_by": "soup",
        "method": config.method,
        "weights": list(weights),
        "parameters": {name: list(values) for name, values in config.parameters.items()},
        "seed": config.seed,
        "rank": truncation.rank if truncation else None,
        "energy": truncation.energy if truncation else None,
        "base_model": first.config.get("base_model_name_or_path"),
        "revision": first.config.get("revision"),
    }
