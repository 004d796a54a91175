"""Quantize a model layer by layer, each with what it reads after the layers before it were rounded.

Rows go through the embedding once. Then for each layer: it reads the rows, its linear layers' inputs
are summed up, its matrices are rounded, and what the rounded layer writes is what the next one reads.
Shapes: B batch (1), T tokens, C columns (inputs).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dualign.errors import CheckpointError
from dualign.export.calibration import Calibration
from dualign.export.compressed.awq import Inputs, clipped, has_pairs, nearest_values, smooth
from dualign.export.compressed.gptq import gptq
from dualign.export.compressed.packing import quantization_args
from dualign.export.compressed.source import CompressedSource, layer_number, layers_path
from dualign.export.compressed.write import read_tensor, stored
from dualign.terminal import progress

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs
    from transformers import PreTrainedModel

_MAX_CHANGE = 1e-3  # relative; float32 rounds by about 1e-6


class _ReachedLayers(Exception):
    """The first layer was called, and what it was passed is kept."""


def calibrated(
    source: CompressedSource, rows: Calibration, model: "PreTrainedModel"
) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors, matrices rounded by GPTQ or after AWQ's scaling.

    Args:
        model: the weights of `source` in float32, which are rounded in place.

    Raises:
        CheckpointError: the model's layers aren't of a kind that this can take apart.
    """
    layers = _layers(source, model)
    for name in source.names():
        if layer_number(name) < 0:
            yield name, read_tensor(source, name).to(torch.bfloat16)
    args = quantization_args(source.weight_args)
    with torch.no_grad():
        reads = _first_reads(model, layers[0], [row.ids for row in rows.rows])
        label = f"{source.type.name} on {len(rows.rows)} rows"
        for number, layer in enumerate(_with_bar(layers, label)):
            prefix = f"{layers_path(source.modules)}.{number}."
            names = [m.removeprefix(prefix) for m in source.modules if m.startswith(prefix)]
            inputs = _inputs(layer, names, reads)
            if source.type.method == "awq":
                _smooth(source, layer, inputs, args, reads[0])
            params = _round(source, layer, names, inputs, args)
            reads = [(_output(layer, read, kwargs), kwargs) for read, kwargs in reads]
            yield from _stored(source, layer, prefix, params, args)


def _with_bar(layers: Sequence[nn.Module], label: str) -> Iterator[nn.Module]:
    """Yield layers under a bar."""
    with progress(len(layers), label, unit="layers") as bar:
        for layer in layers:
            yield layer
            bar.update(1)


def _layers(source: CompressedSource, model: "PreTrainedModel") -> list[nn.Module]:
    layers = list(model.get_submodule(layers_path(source.modules)).children())
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if len(kinds) > 1:
        raise CheckpointError(
            f"{source.model}: layers of several kinds ({', '.join(sorted(kinds))}): --type "
            f"{source.type.name} runs them one by one with one mask; choose --type fp8 or int8"
        )
    if source.type.method == "awq" and not all(map(has_pairs, layers)):
        raise CheckpointError(
            f"{source.model}: --type awq knows layers with Llama's names of modules; choose --type gptq"
        )
    return layers


_Read = tuple[Tensor, dict[str, Any]]
"""what a layer is passed for a row: hidden states [B, T, C], and the rest"""


def _first_reads(
    model: "PreTrainedModel", first: nn.Module, rows: Sequence[Sequence[int]]
) -> list[_Read]:
    reads: list[_Read] = []

    def keep(_: nn.Module, passed: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = passed[0] if passed else kwargs["hidden_states"]
        reads.append((hidden, {k: v for k, v in kwargs.items() if k != "hidden_states"}))
        raise _ReachedLayers

    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for ids in rows:
            try:
                model(torch.tensor([list(ids)], device=model.device), use_cache=False)
            except _ReachedLayers:
                continue
    finally:
        handle.remove()
    return reads


def _output(layer: nn.Module, hidden_BTC: Tensor, kwargs: dict[str, Any]) -> Tensor:
    written = layer(hidden_BTC, **kwargs)
    output_BTC: Tensor = written[0] if isinstance(written, tuple) else written
    return output_BTC


def _inputs(layer: nn.Module, names: Sequence[str], reads: Sequence[_Read]) -> dict[str, Inputs]:
    """Let a layer read all rows, and sum up what its linear layers read."""
    inputs: dict[str, Inputs] = {}

    def watch(name: str, module: nn.Linear) -> Any:
        width = module.in_features
        zeros = torch.zeros(width, width, device=module.weight.device)
        inputs[name] = Inputs(moments_CC=zeros, sizes_C=zeros[0].clone(), tokens=0)

        def add(_: nn.Module, passed: tuple[Tensor, ...]) -> None:
            flat_TC = passed[0].flatten(0, -2)
            inputs[name].moments_CC.addmm_(flat_TC.T, flat_TC)
            inputs[name].sizes_C += flat_TC.abs().sum(0)
            inputs[name].tokens += len(flat_TC)

        return module.register_forward_pre_hook(add)

    handles = [watch(name, layer.get_submodule(name)) for name in names]  # type: ignore[arg-type]
    try:
        for hidden, kwargs in reads:
            _output(layer, hidden, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def _smooth(
    source: CompressedSource,
    layer: nn.Module,
    inputs: dict[str, Inputs],
    args: "QuantizationArgs",
    read: _Read,
) -> None:
    """Scale the modules of a layer in place.

    Raises:
        CheckpointError: the layer computes something else then: a norm that multiplies by 1 + its
            weight (Gemma), or one between the modules (BitNet).
    """
    before_BTC = _output(layer, *read)
    smooth(layer, inputs, args)
    change = float((_output(layer, *read) - before_BTC).norm() / before_BTC.norm())
    if not change <= _MAX_CHANGE:
        raise CheckpointError(
            f"{source.model}: AWQ's scaling changes what a layer computes by {change:.2g}, so the layer "
            "isn't of Llama's kind; choose --type gptq"
        )


def _round(
    source: CompressedSource,
    layer: nn.Module,
    names: Sequence[str],
    inputs: dict[str, Inputs],
    args: "QuantizationArgs",
) -> dict[str, dict[str, Tensor]]:
    """Round the matrices of a layer in place; return their scales."""
    params = {}
    for name in names:
        weight_RC: Tensor = layer.get_submodule(name).weight  # type: ignore[assignment]
        if source.type.method == "gptq":
            rounded_RC, params[name] = gptq(weight_RC, inputs[name].moments_CC, args)
        else:
            clipped_RC = clipped(weight_RC, inputs[name].moments_CC, args)
            rounded_RC, params[name] = nearest_values(clipped_RC, args)
        weight_RC.copy_(rounded_RC)
    return params


def _stored(
    source: CompressedSource,
    layer: nn.Module,
    prefix: str,
    params: dict[str, dict[str, Tensor]],
    args: "QuantizationArgs",
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer in the order of `source.specs()`."""
    state = layer.state_dict()
    for name in (name for name in source.names() if name.startswith(prefix)):
        local = name.removeprefix(prefix)
        module = local.removesuffix(".weight")
        if local != module and module in params:
            yield from stored(source, prefix + module, state[local], params[module], args)
        elif local in state:
            yield name, state[local].to(torch.bfloat16)
        else:  # a buffer that old files hold, such as Llama's inv_freq
            yield name, read_tensor(source, name).to(torch.bfloat16)
