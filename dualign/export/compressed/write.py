"""Write the tensors of a compressed checkpoint into shards, in the order in which they come."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualign.checkpoints.checkpoint import read_json, read_whole
from dualign.checkpoints.shards import SHARD_BYTES, shard_names, split, write_side_files
from dualign.errors import CheckpointError
from dualign.export.compressed.packing import (
    packed,
    quantization_args,
    quantization_config,
    scales_of,
    sharing,
)
from dualign.export.compressed.source import CompressedSource
from dualign.rundir import write_json
from dualign.terminal import progress

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs

Named = Iterable[tuple[str, Tensor]]


def write_tensors(source: CompressedSource, tensors: Named, out: Path) -> None:
    """Write safetensors shards with an index; `tensors` come in the order of `source.specs()`."""
    from safetensors.torch import save_file

    shards = split(source.specs(), SHARD_BYTES)
    names = shard_names(len(shards))
    total = sum(spec.nbytes for shard in shards for spec in shard)
    coming = iter(tensors)
    with progress(total, f"writing {source.type.name}") as bar:
        for file, shard in zip(names, shards, strict=True):
            held: dict[str, Tensor] = {}
            for spec in shard:
                name, tensor = next(coming)
                size = tensor.numel() * tensor.element_size()
                if (name, tuple(tensor.shape), size) != (spec.name, spec.shape, spec.nbytes):
                    raise CheckpointError(
                        f"{spec.name}: expected {spec.shape} in {spec.dtype}, compressed-tensors made "
                        f"{name} {tuple(tensor.shape)} in {tensor.dtype}; please report its version"
                    )
                held[name] = tensor.cpu()
                bar.update(size)
            save_file(held, out / file, metadata={"format": "pt"})
            (out / file).chmod(0o644)  # safetensors makes files for their owner alone
    if len(shards) > 1:
        places = {
            spec.name: file for file, shard in zip(names, shards, strict=True) for spec in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=2, sort_keys=True)
        (out / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def write_config(source: CompressedSource, out: Path) -> None:
    """Write config.json with `quantization_config`, tokenizer, template and generation settings."""
    write_side_files(source.weights, out, dtype="bfloat16")
    if source.type.method == "cast":
        return
    config = read_json(out / "config.json")
    config["quantization_config"] = quantization_config(
        source.type, source.weight_args, source.ignored
    )
    write_json(out / "config.json", config)


def nearest(source: CompressedSource) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors, each matrix rounded by itself; one is in memory at a time."""
    args = quantization_args(source.weight_args)
    for name in source.names():
        module = name.removesuffix(".weight")
        if name == module or module not in source.modules:
            yield name, read_tensor(source, name).to(torch.bfloat16)
            continue
        weight_RC = read_tensor(source, name)
        params = scales_of(weight_RC, args, _largest(source, module))
        yield from stored(source, module, weight_RC, params, args)


def stored(
    source: CompressedSource,
    module: str,
    weight_RC: Tensor,
    params: dict[str, Tensor],
    args: "QuantizationArgs",
) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of a matrix by their full names, in order."""
    for key, tensor in sorted(packed(weight_RC, params, source.type, args).items()):
        yield f"{module}.{key}", tensor


def read_tensor(source: CompressedSource, name: str) -> Tensor:
    """Read a tensor as float32."""
    return torch.from_numpy(read_whole(source.weights, name)).float()


def _largest(source: CompressedSource, module: str) -> float | None:
    """Return the largest absolute weight of the matrices that share NVFP4's outer scale."""
    if source.type.weights.get("strategy") != "tensor_group":
        return None
    shared = (f"{other}.weight" for other in sharing(module))
    return max(
        float(read_tensor(source, name).abs().max())
        for name in shared
        if name in source.weights.entries
    )
