"""A merge as JSON in merge.json, and back: so that it can be computed again from what it left."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dualign.merging.config import Merge, Slice, Source, TokenRow, Tokens
from dualign.merging.parameters import Level


def to_json(merge: Merge) -> dict[str, Any]:
    """Everything that the result depends on, besides the inputs themselves."""
    inner = {name: to_json(one) for name, one in merge.inner.items()}
    return {**asdict(merge), "lines": {}, "inner": inner}


def from_json(value: Mapping[str, Any]) -> Merge:
    """The merge that `to_json` wrote."""
    slices = tuple(
        Slice(
            key=tuple(one["key"]),
            sources=tuple(_source(source) for source in one["sources"]),
            parameters=_level(one["parameters"]),
            base_model=one["base_model"],
        )
        for one in value["slices"]
    )
    inner = {name: from_json(one) for name, one in value["inner"].items()}
    same = (
        "arithmetic",
        "file", "method", "base_model", "dtype", "config_from", "tokenizer_from", "chat_template"
    )  # fmt: skip
    return Merge(
        **{key: value[key] for key in same},
        slices=slices,
        parameters=_level(value["parameters"]),
        tokens=_tokens(value["tokens"]) if value.get("tokens") else None,
        allow_pickle=bool(value.get("allow_pickle", False)),
        inner=inner,
    )


def _tokens(value: Mapping[str, Any]) -> Tokens:
    return Tokens(**{**value, "rows": tuple(TokenRow(**one) for one in value["rows"])})


def _source(value: Mapping[str, Any]) -> Source:
    layers = value["layer_range"]
    return Source(
        model=value["model"],
        parameters=_level(value["parameters"]),
        layer_range=(layers[0], layers[1]) if layers else None,
    )


def _level(value: Mapping[str, Any]) -> Level:
    return Level(tuple(value["key"]), value["values"])
