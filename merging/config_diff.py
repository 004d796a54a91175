"""Where the config.json of two models differ in what the model computes."""

import ast
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Weights
from dualign.merging.layers import find_stack

# Keys of config.json that don't change what the model computes when it is evaluated.
NEUTRAL = frozenset({
    "_name_or_path", "_commit_hash", "_attn_implementation", "transformers_version", "auto_map",
    "dtype", "torch_dtype", "use_cache", "initializer_range", "attention_dropout", "pretraining_tp",
    "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward",
    "id2label", "label2id", "problem_type",
})  # fmt: skip
# No choice makes these right.
FATAL = frozenset({
    "architectures", "model_type", "tie_word_embeddings", "vocab_size", "hidden_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "no_rope_layers",
    "no_rope_layer_interval", "layer_types", "num_experts", "num_experts_per_tok",
})  # fmt: skip


def config_differences(first: Weights, other: Weights, *, slices: bool) -> dict[str, list[Any]]:
    """Each key that differs, with both values; with `slices` the number of layers may differ."""
    ours, theirs = _settled(first.config), _settled(other.config)
    found = _compare(ours, theirs)
    if slices:
        layers = {find_stack(one.entries).count for one in (first, other)}
        found = {
            key: values
            for key, values in found.items()
            if key != "num_hidden_layers"
            and not any(isinstance(one, list) and len(one) in layers for one in values)
        }
    # One may leave out what the other spells out: compare with the defaults of the architecture,
    # as far as its source shows them, and only then with transformers, which takes seconds to import.
    for filled in (_with_written_defaults, _with_defaults):
        if all(key in ours and key in theirs for key in found):
            break
        remaining = _compare(filled(first, found), filled(other, found))
        found = {key: values for key, values in remaining.items() if key in found}
    return found


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings in the form that transformers writes since release 5."""
    settled = dict(config)
    scaling = settled.get("rope_scaling") or {}
    old = "rope_theta" in settled and not settled.get("rope_parameters")
    if old and isinstance(scaling, dict):
        settled.pop("rope_scaling", None)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        settled["rope_parameters"] = {
            **{key: value for key, value in scaling.items() if key != "type"},
            "rope_theta": settled.pop("rope_theta"),
            "rope_type": kind,
        }
    return settled


def _compare(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    keys = sorted((set(first) | set(other)) - NEUTRAL)
    return {
        key: [first.get(key), other.get(key)] for key in keys if first.get(key) != other.get(key)
    }


def _with_written_defaults(weights: Weights, keys: Iterable[str]) -> dict[str, Any]:
    """The config, with what the source of its class says of the keys that it leaves out."""
    config = _settled(weights.config)
    defaults = _written_defaults(str(config.get("model_type")))
    heads = config.get("num_attention_heads")
    if "head_dim" in defaults and isinstance(heads, int) and config.get("hidden_size"):
        defaults = {**defaults, "head_dim": defaults["head_dim"] or config["hidden_size"] // heads}
    if "num_key_value_heads" in defaults and defaults["num_key_value_heads"] is None:
        defaults = {**defaults, "num_key_value_heads": heads}
    missing = {key: defaults[key] for key in keys if key in defaults and config.get(key) is None}
    return {**config, **missing}


def _written_defaults(model_type: str) -> dict[str, Any]:
    """`name: type = value` in the class of a model type, read without importing it."""
    spec = find_spec("transformers")
    folder = model_type.replace("-", "_")
    if spec is None or not spec.submodule_search_locations or not folder.isidentifier():
        return {}
    root = Path(spec.submodule_search_locations[0])
    source = root / "models" / folder / f"configuration_{folder}.py"
    if not source.is_file():
        return {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and _names(node, model_type):
            return {
                one.target.id: one.value.value
                for one in node.body
                if isinstance(one, ast.AnnAssign)
                and isinstance(one.target, ast.Name)
                and isinstance(one.value, ast.Constant)
            }
    return {}


def _names(node: ast.ClassDef, model_type: str) -> bool:
    return any(
        isinstance(one, ast.Assign)
        and isinstance(one.value, ast.Constant)
        and one.value.value == model_type
        and any(
            isinstance(target, ast.Name) and target.id == "model_type" for target in one.targets
        )
        for one in node.body
    )


def _with_defaults(weights: Weights, _keys: Iterable[str]) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    config = dict(weights.config)
    model_type = config.pop("model_type", None)
    try:
        return dict(AutoConfig.for_model(model_type, **config).to_dict())
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
        # An architecture, or a value, that transformers doesn't take: compare what is written.
        return dict(weights.config)
