"""Differences between the config.json of two models in what the model computes."""

import ast
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.context import rotary_settings
from dualign.merging.layers import find_stack

# Keys of config.json that don't change what a model computes in evaluation.
_NEUTRAL = frozenset({
    "_name_or_path", "_commit_hash", "_attn_implementation", "transformers_version", "auto_map",
    "dtype", "torch_dtype", "use_cache", "initializer_range", "attention_dropout", "pretraining_tp",
    "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward",
    "id2label", "label2id", "problem_type",
})  # fmt: skip
# Keys whose differences no choice resolves.
FATAL = frozenset({
    "architectures", "model_type", "tie_word_embeddings", "vocab_size", "hidden_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "no_rope_layers",
    "no_rope_layer_interval", "layer_types", "num_experts", "num_experts_per_tok",
})  # fmt: skip


def config_differences(first: Weights, other: Weights, *, slices: bool) -> dict[str, list[Any]]:
    """Return each key that differs, with both values; with `slices` layers may differ in number."""
    ours, theirs = _current_form(first.config), _current_form(other.config)
    differences = _compare(ours, theirs)
    if slices:
        layers = {find_stack(weights.entries).count for weights in (first, other)}
        differences = {
            key: values
            for key, values in differences.items()
            if key != "num_hidden_layers"
            and not any(isinstance(value, list) and len(value) in layers for value in values)
        }
    # A model may leave out a key that the other has: fill in the defaults of the architecture, from
    # its source if they are there, and only then from transformers, which takes seconds to import.
    for with_defaults in (_with_source_defaults, _with_transformers_defaults):
        if all(key in ours and key in theirs for key in differences):
            break
        remaining = _compare(with_defaults(first, differences), with_defaults(other, differences))
        differences = {key: values for key, values in remaining.items() if key in differences}
    return differences


def _current_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with the rotary settings as transformers writes them since release 5."""
    rotary = rotary_settings(config)
    if config.get("rope_parameters") or not rotary:
        return dict(config)
    others = {
        key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")
    }
    return {**others, "rope_parameters": rotary}


def _compare(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    keys = sorted((set(first) | set(other)) - _NEUTRAL)
    return {
        key: [first.get(key), other.get(key)] for key in keys if first.get(key) != other.get(key)
    }


def _with_source_defaults(weights: Weights, keys: Iterable[str]) -> dict[str, Any]:
    """Fill in missing keys with the defaults in the source of the config's class."""
    config = _current_form(weights.config)
    defaults = _source_defaults(str(config.get("model_type")))
    heads = config.get("num_attention_heads")
    if "head_dim" in defaults and isinstance(heads, int) and config.get("hidden_size"):
        defaults = {**defaults, "head_dim": defaults["head_dim"] or config["hidden_size"] // heads}
    if "num_key_value_heads" in defaults and defaults["num_key_value_heads"] is None:
        defaults = {**defaults, "num_key_value_heads": heads}
    missing = {key: defaults[key] for key in keys if key in defaults and config.get(key) is None}
    return {**config, **missing}


def _source_defaults(model_type: str) -> dict[str, Any]:
    """Read `name: type = value` in the class of a model type, without importing it."""
    spec = find_spec("transformers")
    folder = model_type.replace("-", "_")
    if spec is None or not spec.submodule_search_locations or not folder.isidentifier():
        return {}
    root = Path(spec.submodule_search_locations[0])
    source = root / "models" / folder / f"configuration_{folder}.py"
    if not source.is_file():
        return {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and _is_class_of(node, model_type):
            return {
                field.target.id: field.value.value
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(field.value, ast.Constant)
            }
    return {}


def _is_class_of(node: ast.ClassDef, model_type: str) -> bool:
    """Return whether the class says `model_type = "..."` with this value."""
    return any(
        isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and statement.value.value == model_type
        and any(
            isinstance(target, ast.Name) and target.id == "model_type"
            for target in statement.targets
        )
        for statement in node.body
    )


def _with_transformers_defaults(weights: Weights, _keys: Iterable[str]) -> dict[str, Any]:
    """Fill in missing keys as transformers does when it loads the config."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    config = dict(weights.config)
    model_type = config.pop("model_type", None)
    try:
        return dict(AutoConfig.for_model(model_type, **config).to_dict())
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
        # transformers doesn't know the architecture, or refuses a value: compare the files.
        return dict(weights.config)
