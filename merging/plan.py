"""Plan a merge: from its config and the models' headers to the inputs of each merged tensor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.context import stretched_config
from dualign.checkpoints.dtypes import DTYPE_CODES
from dualign.checkpoints.header import Entry
from dualign.errors import MergeError
from dualign.merging.config import Merge, MergeSlice, MergeSource, is_base, weight_problem
from dualign.merging.layers import Stack, find_stack, layer_position
from dualign.merging.methods.table import METHODS, Parameter
from dualign.merging.parameters import Level, Resolver, Value

Models = Mapping[str, Weights]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """One tensor of the merged model: the method, its inputs and its parameters."""

    name: str
    method: str
    entry: Entry
    """shape and stored type"""
    inputs: tuple[tuple[str, str], ...]
    """(model, tensor) in the order of the config"""
    base: tuple[str, str] | None
    per_model: Mapping[str, tuple[Value, ...]]
    global_: Mapping[str, Value]
    arithmetic: str | None = None
    """the stored type in which mergekit would compute; None: float64"""


@dataclass(frozen=True, slots=True)
class _TensorSources:
    """A tensor of the merged model before its parameters are looked up."""

    name: str
    slice: MergeSlice
    sources: tuple[tuple[MergeSource, str], ...]
    """each with the name of its tensor"""
    base: tuple[str, str] | None
    position: float
    """of the layer: 0 first, 1 last"""


def plan_tensors(
    merge: Merge, models: Models, config_source: str
) -> tuple[dict[str, TensorPlan], list[str]]:
    """Plan every tensor of the merged model, by name; also return warnings, a line each.

    Raises:
        MergeError: a tensor is missing or has another shape, a parameter is missing, or a filter or
            (if the merge is strict) a parameter has no effect.
    """
    resolver = Resolver()
    if _has_ranges(merge):
        tensors = _from_slices(merge, models)
    else:
        tensors = _from_models(merge, models, config_source)
    plans = {tensor.name: _plan(merge, tensor, models, resolver) for tensor in tensors}
    return plans, _unused(merge, resolver)


def _has_ranges(merge: Merge) -> bool:
    return merge.slices[0].sources[0].layer_range is not None


def _from_models(merge: Merge, models: Models, config_source: str) -> list[_TensorSources]:
    (slice_,) = merge.slices
    stack = find_stack(models[config_source].entries)
    return [
        _TensorSources(
            name,
            slice_,
            tuple((source, name) for source in slice_.sources),
            (slice_.base_model, name) if slice_.base_model else None,
            stack.position(name),
        )
        for name in models[config_source].entries
    ]


def _from_slices(merge: Merge, models: Models) -> list[_TensorSources]:
    """Stack the layers of the slices, and add the tensors outside of the layers."""
    stacks = {name: find_stack(weights.entries) for name, weights in models.items()}
    tensors = _outside_layers(merge, models, stacks)
    layer = 0
    for slice_ in merge.slices:
        first, last = _layer_range(merge, slice_, stacks)
        for step in range(last - first):
            position = layer_position(step, last - first)
            tensors += _layer(slice_, models, stacks, layer, step, position)
            layer += 1
    return tensors


def _layer_range(merge: Merge, slice_: MergeSlice, stacks: Mapping[str, Stack]) -> tuple[int, int]:
    """Return the range of the first source; check that all sources have as many layers."""
    ranges = []
    for source in slice_.sources:
        first, last = source.layer_range or (0, 0)
        count = stacks[source.model].count
        if not 0 <= first < last <= count:
            raise MergeError(
                f"{merge.location((*source.parameters.key[:-1], 'layer_range'))}: [{first}, {last}]: "
                f"{source.model} has the layers [0, {count}]"
            )
        ranges.append((first, last))
    lengths = {last - first for first, last in ranges}
    if len(lengths) > 1:
        raise MergeError(
            f"{merge.location(slice_.key)}: its sources have {sorted(lengths)} layers; expected as "
            "many of each"
        )
    return ranges[0]


def _layer(
    slice_: MergeSlice,
    models: Models,
    stacks: Mapping[str, Stack],
    layer: int,
    step: int,
    position: float,
) -> Iterator[_TensorSources]:
    """Yield the tensors of the merged model's `layer`: layer `step` of each source's range.

    With the sources a: [4, 8] and b: [0, 4], step 1 makes layer 9 of the merged model so:
    `layers.9.mlp.weight` from a's `layers.5.mlp.weight` and b's `layers.1.mlp.weight`.
    """

    def name_in(model: str, source: MergeSource, name: str) -> str:
        return stacks[model].renamed(name, (source.layer_range or (0, 0))[0] + step)

    first = slice_.sources[0]
    # The base's layers are those of its own range if it is listed, else those of the first source.
    listed = [source for source in slice_.sources if source.model == slice_.base_model]
    stack = stacks[first.model]
    for name in models[first.model].entries:
        if stack.layer(name) != (first.layer_range or (0, 0))[0] + step:
            continue
        base = slice_.base_model
        yield _TensorSources(
            stack.renamed(name, layer),
            slice_,
            tuple((source, name_in(source.model, source, name)) for source in slice_.sources),
            (base, name_in(base, (listed or [first])[0], name)) if base else None,
            position,
        )


def _outside_layers(
    merge: Merge, models: Models, stacks: Mapping[str, Stack]
) -> list[_TensorSources]:
    """Take tensors below the layers from the first slice's sources, the rest from the last slice's.

    For slices of a: [0, 12] and b: [8, 16]:

        embed_tokens.weight            a, slice 0
        layers.0 ... layers.11         a's layers 0 ... 11, slice 0
        layers.12 ... layers.19        b's layers 8 ... 15, slice 1
        norm.weight, lm_head.weight    b, slice 1

    Their names are those of the first slice's first source; their position is 0, as in mergekit.
    """
    first, last = merge.slices[0], merge.slices[-1]
    model = first.sources[0].model
    tensors = []
    for name in models[model].entries:
        if stacks[model].layer(name) is None:
            slice_ = first if "embed" in name or "wte" in name or "wpe" in name else last
            sources = tuple((source, name) for source in slice_.sources)
            base = (slice_.base_model, name) if slice_.base_model else None
            tensors.append(_TensorSources(name, slice_, sources, base, 0.0))
    return tensors


def _plan(merge: Merge, tensor: _TensorSources, models: Models, resolver: Resolver) -> TensorPlan:
    """Look up the parameters of one tensor."""
    method, slice_ = METHODS[merge.method], tensor.slice
    inputs = [
        (source, name) for source, name in tensor.sources if not is_base(merge, slice_, source)
    ]
    base = tensor.base if method.base != "none" else None
    parts = [*((source.model, name) for source, name in inputs), *([base] if base else [])]
    entry = _common_entry(tensor.name, parts, models)
    outer = [slice_.parameters, merge.parameters]

    def look_up(parameter: str, spec: Parameter, levels: Sequence[Level], name: str) -> Value:
        try:
            return resolver.value(parameter, spec, levels, tensor=name, position=tensor.position)
        except MergeError as error:
            raise MergeError(f"{merge.file}: {error}") from None

    # As in mergekit: filters of a model's parameters see the tensor's name in that model.
    per_model = {
        parameter: tuple(
            look_up(parameter, spec, [source.parameters, *outer], name) for source, name in inputs
        )
        for parameter, spec in method.per_model.items()
    }
    global_ = {
        parameter: look_up(parameter, spec, outer, tensor.name)
        for parameter, spec in method.global_.items()
    }
    if merge.method == "linear" and global_["normalize"]:
        why = weight_problem([float(weight) for weight in per_model["weight"]])
        if why:  # from a gradient or a filter; plain weights are checked with the config
            raise MergeError(f"{merge.file}: {tensor.name}: {why}")
    return TensorPlan(
        name=tensor.name,
        method=merge.method,
        entry=entry,
        inputs=tuple((source.model, name) for source, name in inputs),
        base=base,
        per_model=per_model,
        global_=global_,
        arithmetic=_arithmetic(merge, entry),
    )


def _arithmetic(merge: Merge, entry: Entry) -> str | None:
    if merge.arithmetic is None:
        return None
    return entry.dtype if merge.arithmetic == "input" else DTYPE_CODES[merge.arithmetic]


def _common_entry(tensor: str, parts: Sequence[tuple[str, str]], models: Models) -> Entry:
    """Return shape and type of the first part; check that all have this shape."""
    entries: list[tuple[str, Entry]] = []
    for model, name in parts:
        if name not in models[model].entries:
            raise MergeError(
                f"{models[model].folders[0]}: has no tensor {name}, which {tensor} needs"
            )
        entries.append((model, models[model].entries[name]))
    first = entries[0]
    for model, entry in entries[1:]:
        if entry.shape != first[1].shape:
            raise MergeError(
                f"{models[first[0]].folders[0]} and {models[model].folders[0]}: {tensor} is "
                f"{first[1].shape} and {entry.shape}; shapes must agree"
            )
    return first[1]


def _unused(merge: Merge, resolver: Resolver) -> list[str]:
    """Return a line for each parameter that gave no tensor its value; refuse such filters."""
    levels = [merge.parameters]
    for slice_ in merge.slices:
        levels += [slice_.parameters, *(source.parameters for source in slice_.sources)]
    unused = resolver.unused(levels)
    lines = [
        f"{merge.location(key)}: has no effect: no tensor gets it (a filter that fits none, "
        "or all get theirs from a nearer place)"
        for key in unused
    ]
    if unused and (merge.strict or any(isinstance(key[-1], int) for key in unused)):
        raise MergeError("\n".join(lines))
    return lines


def merged_config(merge: Merge, models: Models, config_source: str) -> dict[str, Any]:
    """Return the config.json of `config_source`; with slices, for the new number of layers.

    Raises:
        CheckpointError: its positions can't be stretched as `context` says.
    """
    config = dict(models[config_source].config)
    if merge.context is not None:
        config = stretched_config(config, merge.context)
    if not _has_ranges(merge):
        return config
    stacks = {name: find_stack(weights.entries) for name, weights in models.items()}
    count = stacks[config_source].count
    config["num_hidden_layers"] = sum(
        last - first
        for slice_ in merge.slices
        for first, last in [_layer_range(merge, slice_, stacks)]
    )
    for key, value in models[config_source].config.items():
        if isinstance(value, list) and len(value) == count and count > 1:
            config[key] = _per_layer(merge, models, key)
    return config


def _per_layer(merge: Merge, models: Models, key: str) -> list[Any]:
    """Stack a setting with a value for each layer (layer_types, no_rope_layers) like the layers."""
    stacked = []
    for slice_ in merge.slices:
        first, last = slice_.sources[0].layer_range or (0, 0)
        values = {
            str(models[source.model].config.get(key, [])[slice(*(source.layer_range or (0, 0)))])
            for source in slice_.sources
        }
        if len(values) > 1:
            raise MergeError(
                f"{merge.location(slice_.key)}: {key} differs between its sources: "
                f"{' and '.join(sorted(values))}; such layers can't be merged"
            )
        stacked += models[slice_.sources[0].model].config[key][first:last]
    return stacked
