"""From a config and the headers of its models to what makes each tensor of the merged model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.dtypes import CODES
from dualign.checkpoints.header import Entry
from dualign.errors import MergeError
from dualign.merging.config import Merge, Slice, Source, is_base, unusable
from dualign.merging.layers import Stack, place_of, stack_of
from dualign.merging.method_specs import METHODS, Parameter
from dualign.merging.parameters import Level, Resolver, Value

Models = Mapping[str, Weights]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One tensor of the merged model: the method, what it reads, and its parameters."""

    name: str
    method: str
    entry: Entry
    """shape and stored type"""
    inputs: tuple[tuple[str, str], ...]
    """model and tensor, in the order of the config"""
    base: tuple[str, str] | None
    each: Mapping[str, tuple[Value, ...]]
    shared: Mapping[str, Value]
    arithmetic: str | None = None
    """the stored type that mergekit would compute in; None: ours, float64"""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor of the merged model before its parameters are looked up."""

    name: str
    slice: Slice
    sources: tuple[tuple[Source, str], ...]
    """each with the name of its tensor"""
    base: tuple[str, str] | None
    place: float


def plan(merge: Merge, models: Models, donor: str) -> dict[str, Job]:
    """Every tensor of the merged model, by name.

    Raises:
        MergeError: a tensor is missing or has another shape, a parameter is missing, or one that is
            given has no effect.
    """
    resolver = Resolver()
    sliced = merge.slices[0].sources[0].layer_range is not None
    pieces = _from_slices(merge, models) if sliced else _from_models(merge, models, donor)
    jobs = {one.name: _job(merge, one, models, resolver) for one in pieces}
    _require_use(merge, resolver)
    return jobs


def _from_models(merge: Merge, models: Models, donor: str) -> list[_Piece]:
    (one,) = merge.slices
    stack = stack_of(models[donor].entries)
    return [
        _Piece(
            name,
            one,
            tuple((source, name) for source in one.sources),
            (one.base_model, name) if one.base_model else None,
            stack.place(name),
        )
        for name in models[donor].entries
    ]


def _from_slices(merge: Merge, models: Models) -> list[_Piece]:
    """Layers one after the other; what comes before them from the first slice, after from the last."""
    stacks = {name: stack_of(weights.entries) for name, weights in models.items()}
    pieces = _outside(merge, models, stacks)
    layer = 0
    for one in merge.slices:
        first = _ranges(merge, one, stacks)
        count = first[1] - first[0]
        for step in range(count):
            pieces += _layer(one, models, stacks, layer, step, place_of(step, count))
            layer += 1
    return pieces


def _ranges(merge: Merge, one: Slice, stacks: Mapping[str, Stack]) -> tuple[int, int]:
    """The range of the first source; all of a slice have one length."""
    ranges = []
    for source in one.sources:
        first, last = source.layer_range or (0, 0)
        count = stacks[source.model].count
        if not 0 <= first < last <= count:
            raise MergeError(
                f"{merge.where((*source.parameters.key[:-1], 'layer_range'))}: [{first}, {last}]: "
                f"{source.model} has the layers [0, {count}]"
            )
        ranges.append((first, last))
    lengths = {last - first for first, last in ranges}
    if len(lengths) > 1:
        raise MergeError(
            f"{merge.where(one.key)}: its sources have {sorted(lengths)} layers; expected as many "
            "of each"
        )
    return ranges[0]


def _layer(
    one: Slice,
    models: Models,
    stacks: Mapping[str, Stack],
    layer: int,
    step: int,
    place: float,
) -> list[_Piece]:
    lead = one.sources[0]
    stack = stacks[lead.model]
    number = (lead.layer_range or (0, 0))[0] + step
    found = []
    for name in models[lead.model].entries:
        if stack.layer(name) != number:
            continue
        sources = tuple((source, _named(source, stacks, name, step)) for source in one.sources)
        base = (one.base_model, _base_name(one, stacks, name, step)) if one.base_model else None
        found.append(_Piece(stack.renamed(name, layer), one, sources, base, place))
    return found


def _named(source: Source, stacks: Mapping[str, Stack], name: str, step: int) -> str:
    return stacks[source.model].renamed(name, (source.layer_range or (0, 0))[0] + step)


def _base_name(one: Slice, stacks: Mapping[str, Stack], name: str, step: int) -> str:
    """The base's layers are those that it is listed with, else those of the first source."""
    listed = [source for source in one.sources if source.model == one.base_model]
    source = listed[0] if listed else one.sources[0]
    return stacks[one.base_model or ""].renamed(name, (source.layer_range or (0, 0))[0] + step)


def _outside(merge: Merge, models: Models, stacks: Mapping[str, Stack]) -> list[_Piece]:
    """Tensors outside of the layers: up to the first layer of the first slice, the rest of the last."""
    found = []
    first, last = merge.slices[0], merge.slices[-1]
    lead = first.sources[0].model
    for name in models[lead].entries:
        if stacks[lead].layer(name) is not None:
            continue
        one = first if "embed" in name or "wte" in name or "wpe" in name else last
        sources = tuple((source, name) for source in one.sources)
        base = (one.base_model, name) if one.base_model else None
        found.append(_Piece(name, one, sources, base, 0.0))
    return found


def _job(merge: Merge, piece: _Piece, models: Models, resolver: Resolver) -> Job:
    method = METHODS[merge.method]
    read = [
        (source, name) for source, name in piece.sources if not is_base(merge, piece.slice, source)
    ]
    base = piece.base if method.base != "none" else None
    entry = _entry(
        piece, [*((one.model, name) for one, name in read), *([base] if base else [])], models
    )
    outer = [piece.slice.parameters, merge.parameters]

    def look(name: str, spec: Parameter, levels: Sequence[Level], tensor: str) -> Value:
        try:
            return resolver.value(name, spec, levels, tensor=tensor, place=piece.place)
        except MergeError as error:
            raise MergeError(f"{merge.file}: {error}") from None

    # As in mergekit: filters of a model's parameters see the tensor's name in that model.
    each = {
        name: tuple(
            look(name, spec, [source.parameters, *outer], tensor) for source, tensor in read
        )
        for name, spec in method.each.items()
    }
    shared = {name: look(name, spec, outer, piece.name) for name, spec in method.shared.items()}
    _require_usable(merge, piece.name, each, shared)
    return Job(
        name=piece.name,
        method=merge.method,
        entry=entry,
        inputs=tuple((source.model, name) for source, name in read),
        base=base,
        each=each,
        shared=shared,
        arithmetic=_arithmetic(merge, entry),
    )


def _arithmetic(merge: Merge, entry: Entry) -> str | None:
    if merge.arithmetic is None:
        return None
    return entry.dtype if merge.arithmetic == "input" else CODES[merge.arithmetic]


def _require_usable(
    merge: Merge, name: str, each: Mapping[str, tuple[Value, ...]], shared: Mapping[str, Value]
) -> None:
    """Weights that a gradient or filter makes unusable for one tensor."""
    if merge.method == "linear" and shared["normalize"]:
        why = unusable([float(weight) for weight in each["weight"]])
        if why:
            raise MergeError(f"{merge.file}: {name}: {why}")


def _entry(piece: _Piece, parts: Sequence[tuple[str, str]], models: Models) -> Entry:
    """Shape and type of the first part, which all must have."""
    entries: list[tuple[str, Entry]] = []
    for model, name in parts:
        if name not in models[model].entries:
            raise MergeError(
                f"{models[model].folders[0]}: has no tensor {name}, which {piece.name} needs"
            )
        entries.append((model, models[model].entries[name]))
    first = entries[0]
    for model, entry in entries[1:]:
        if entry.shape != first[1].shape:
            raise MergeError(
                f"{models[first[0]].folders[0]} and {models[model].folders[0]}: {piece.name} is "
                f"{first[1].shape} and {entry.shape}; shapes must agree"
            )
    return first[1]


def _require_use(merge: Merge, resolver: Resolver) -> None:
    levels = [merge.parameters]
    for one in merge.slices:
        levels += [one.parameters, *(source.parameters for source in one.sources)]
    unused = resolver.unused(levels)
    if unused:
        raise MergeError(
            "\n".join(
                f"{merge.where(key)}: has no effect: no tensor gets it (a filter that fits none, or "
                "all get theirs from a nearer place)"
                for key in unused
            )
        )


def config_of(merge: Merge, models: Models, donor: str) -> dict[str, Any]:
    """The donor's config.json; with slices, as many layers as there are now."""
    config = dict(models[donor].config)
    if merge.slices[0].sources[0].layer_range is None:
        return config
    stacks = {name: stack_of(weights.entries) for name, weights in models.items()}
    count = stacks[donor].count
    config["num_hidden_layers"] = sum(
        last - first for one in merge.slices for first, last in [_ranges(merge, one, stacks)]
    )
    for key, value in models[donor].config.items():
        if isinstance(value, list) and len(value) == count and count > 1:
            config[key] = _per_layer(merge, models, key)
    return config


def _per_layer(merge: Merge, models: Models, key: str) -> list[Any]:
    """A setting with one value for each layer (layer_types, no_rope_layers), as the layers went."""
    found = []
    for one in merge.slices:
        first, last = one.sources[0].layer_range or (0, 0)
        values = {
            str(models[source.model].config.get(key, [])[slice(*(source.layer_range or (0, 0)))])
            for source in one.sources
        }
        if len(values) > 1:
            raise MergeError(
                f"{merge.where(one.key)}: {key} differs between its sources: "
                f"{' and '.join(sorted(values))}; such layers can't be merged"
            )
        found += models[one.sources[0].model].config[key][first:last]
    return found
