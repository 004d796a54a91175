"""Keys that mergekit knows and a merge has no use for: taken out, each with a line that says so.

People write parameters of other methods, weights of the base model, or `weight` beside `model`;
mergekit reads past them, and so the numbers are the same. A key that nobody knows stays, and is
refused.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from dualign.config import Document, Key
from dualign.merging.config import Merge, MergeSlice, is_base
from dualign.merging.mergekit.schema import (
    FileModel,
    FileReference,
    FileSlice,
    FileSource,
    MergeFile,
)
from dualign.merging.methods.table import METHODS
from dualign.merging.parameters import Level

_PARAMETERS = frozenset(name for method in METHODS.values() for name in method.parameters)
_KEYS = frozenset(
    [
        "merge_method",
        "models",
        "slices",
        "sources",
        "parameters",
        "base_model",
        "dtype",
        "out_dtype",
        "tokenizer_source",
        "tokenizer",
        "chat_template",
        "model",
        "lora",
        "layer_range",
        "name",
        "residual_weight",
        "override_architecture",
    ]
)
"""of mergekit's YAML, at whatever place"""

Unused = list[tuple[Key, str]]
"""(key, why it has no effect)"""


def take_out_keys(document: Document) -> Unused:
    """Take keys out of the document that mergekit reads elsewhere, or not at all."""
    unused: Unused = []
    document.value = _without(document.value, MergeFile, (), unused)
    for key in ("dtype", "out_dtype"):
        if isinstance(document.value.get(key), str):
            document.value[key] = document.value[key].removeprefix("torch.")
    for key, cls in (("models", FileModel), ("slices", FileSlice)):
        document.value |= _cleaned(document.value, key, cls, (), unused)
    for i, slice_ in _entries(document.value.get("slices")):
        place: Key = ("slices", i)
        slice_ |= _cleaned(slice_, "sources", FileSource, place, unused)
    return unused


def _cleaned(
    value: Mapping[str, Any], key: str, cls: type, place: Key, unused: Unused
) -> dict[str, Any]:
    """Return `{key: the entries without what has no effect}`; {} if they aren't a list."""
    if not isinstance(value.get(key), list):
        return {}
    entries = list(value[key])
    for i, entry in _entries(entries):
        entries[i] = _without(entry, cls, (*place, key, i), unused)
        if isinstance(entry.get("model"), dict):
            where = (*place, key, i, "model")
            entries[i]["model"] = _without(entry["model"], FileReference, where, unused)
    return {key: entries}


def _entries(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(value, list):
        yield from ((i, entry) for i, entry in enumerate(value) if isinstance(entry, dict))


def _without(value: dict[str, Any], cls: type, place: Key, unused: Unused) -> dict[str, Any]:
    read = {field.name for field in fields(cls)}
    for name in value:
        if name in _PARAMETERS and name not in read:
            unused.append(
                ((*place, name), "has no effect here: mergekit reads it under parameters")
            )
        elif name in _KEYS and name not in read:
            unused.append(((*place, name), "has no effect here"))
    # An empty `parameters:` is none at all.
    return {
        name: item
        for name, item in value.items()
        if (name in read or name not in _PARAMETERS | _KEYS)
        and (item is not None or name != "parameters")
    }


def take_out_parameters(merge: Merge) -> tuple[Merge, Unused]:
    """Return the merge without parameters that its method has no use for."""
    unused: Unused = []
    slices = tuple(_slice_without(merge, slice_, unused) for slice_ in merge.slices)
    outer = _level_without(merge.method, merge.parameters, unused)
    return replace(merge, slices=slices, parameters=outer), unused


def _slice_without(merge: Merge, slice_: MergeSlice, unused: Unused) -> MergeSlice:
    method, sources = merge.method, []
    for source in slice_.sources:
        if is_base(merge, slice_, source):
            level = _filtered(source.parameters, frozenset(), _why_not_of_base, unused)
        else:
            level = _level_without(method, source.parameters, unused, of_model=True)
        sources.append(replace(source, parameters=level))
    outer = _level_without(method, slice_.parameters, unused)
    return replace(slice_, sources=tuple(sources), parameters=outer)


def _level_without(method: str, level: Level, unused: Unused, *, of_model: bool = False) -> Level:
    spec = METHODS[method]

    def why(name: str) -> str:
        if name in spec.global_:
            return f"has no effect here: {method} has one {name} for all models, in the outer parameters"
        return f"has no effect: {method} has no such parameter"

    return _filtered(level, frozenset(spec.per_model if of_model else spec.parameters), why, unused)


def _why_not_of_base(name: str) -> str:
    return "has no effect: it is the base model, which isn't weighed"


def _filtered(
    level: Level, read: frozenset[str], why: Callable[[str], str], unused: Unused
) -> Level:
    unused += [
        ((*level.key, name), why(name))
        for name in level.values
        if name in _PARAMETERS and name not in read
    ]
    kept = {
        name: setting
        for name, setting in level.values.items()
        if name in read or name not in _PARAMETERS
    }
    return Level(level.key, kept)
