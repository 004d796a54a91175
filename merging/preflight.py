"""What must agree before checkpoints are merged: tensors, configuration, tokenizer, template.

Read from headers and JSON alone. A difference is one of three kinds. Some can't be merged at all:
other tensors, other architectures, other vocabularies, tied against untied. Some change what the
model computes or where it stops, and can only have one value: the config has to say whose, by
`config_from` or `tokenizer_from`, and the answer goes into merge.json. The rest changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dualign.checkpoints.checkpoint import Weights, read_json
from dualign.checkpoints.numbers import NAMES
from dualign.checkpoints.shards import chat_template, tokenizer_files
from dualign.errors import MergeError
from dualign.merging.config import Merge
from dualign.merging.layers import stack_of

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
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What the config has decided, and what it needs."""

    config: bool
    tokenizer: bool
    template: bool
    slices: bool
    """layers are put together anew, so models may have different numbers of them"""
    one_dtype: bool
    """the stored types are kept, so they have to agree"""


def check(
    models: Mapping[str, Weights], merge: Merge, choices: Choices, *, donor: str
) -> dict[str, dict[str, Any]]:
    """The differences that the config decided, by key: each model's value, and the donor.

    Raises:
        MergeError: the models can't be merged, or something isn't decided.
    """
    every = list(models.values())
    configs = check_configs(every, choices)
    if not choices.slices:
        check_tensors(every)
    if choices.one_dtype:
        check_dtypes(every)
    tokenizers = check_tokenizers(every, choices)
    named = {
        key: {str(one.folders[0]): value for one, value in zip(pair, values, strict=True)}
        for key, (pair, values) in {**configs, **tokenizers}.items()
    }
    return {key: {**values, "taken_from": donor} for key, values in named.items()}


Differences = dict[str, tuple[tuple[Weights, Weights], list[Any]]]


def check_tensors(models: Sequence[Weights]) -> None:
    """Raise MergeError unless all have the same tensors, with the same shapes."""
    first = models[0]
    for other in models[1:]:
        where = f"{first.folders[0]} and {other.folders[0]}"
        for name in sorted(set(first.entries) ^ set(other.entries)):
            holder = first if name in first.entries else other
            raise MergeError(
                f"{where}: only {holder.folders[0]} has the tensor {name}; "
                "both must have the same tensors"
            )
        for name, entry in first.entries.items():
            if entry.shape != other.entries[name].shape:
                raise MergeError(
                    f"{where}: {name} is {entry.shape} and {other.entries[name].shape}; "
                    "shapes must agree"
                )


def check_dtypes(models: Sequence[Weights]) -> None:
    """Raise MergeError unless each tensor has one type everywhere, as `dtype: input` needs."""
    first = models[0]
    for other in models[1:]:
        for name, entry in first.entries.items():
            if name in other.entries and entry.dtype != other.entries[name].dtype:
                raise MergeError(
                    f"{name} is {NAMES[entry.dtype]} in {first.folders[0]} and "
                    f"{NAMES[other.entries[name].dtype]} in {other.folders[0]}: there is no one "
                    "type to keep; set dtype to float32, bfloat16 or float16"
                )


def check_configs(models: Sequence[Weights], choices: Choices) -> Differences:
    """The keys that differ and were decided.

    Raises:
        MergeError: they differ and weren't, or can't be.
    """
    found: Differences = {}
    for first, other in pairwise(models):
        for key, values in _differences(first, other, slices=choices.slices).items():
            ours, theirs = map(_short, values)
            where = f"{key}: {ours} in {first.folders[0]}, {theirs} in {other.folders[0]}"
            if key == "tie_word_embeddings":
                raise MergeError(f"{where}; tied and untied models can't be merged")
            if key in FATAL:
                raise MergeError(f"{where}; models that differ in it can't be merged")
            if not choices.config:
                raise MergeError(
                    f"{where}; the merged model can have only one: "
                    "set config_from to the model whose config is meant"
                )
            found[key] = (first, other), values
    return found


def check_tokenizers(models: Sequence[Weights], choices: Choices) -> Differences:
    """The special tokens and templates that differ and were decided.

    Raises:
        MergeError: the vocabularies differ; or the rest does, and wasn't decided.
    """
    found: Differences = {}
    for first, other in pairwise(models):
        if tokenizer_files(first) and tokenizer_files(other):
            _check_vocabulary(first, other)
        for key, values in _tokenizer_settings(first, other).items():
            ours, theirs = map(_short, values)
            if not (choices.template if key == "chat_template" else choices.tokenizer):
                raise MergeError(
                    f"{key}: {ours} in {first.folders[0]}, {theirs} in {other.folders[0]}; the "
                    "merged model can have only one: set config_from or tokenizer_from to the "
                    "model whose tokenizer is meant"
                )
            found[key] = (first, other), [ours, theirs]
    return found


def _differences(first: Weights, other: Weights, *, slices: bool) -> dict[str, list[Any]]:
    ours, theirs = _settled(first.config), _settled(other.config)
    found = _compare(ours, theirs)
    if slices:
        layers = {stack_of(one.entries).count for one in (first, other)}
        found = {
            key: values
            for key, values in found.items()
            if key != "num_hidden_layers"
            and not any(isinstance(one, list) and len(one) in layers for one in values)
        }
    if all(key in ours and key in theirs for key in found):
        return found
    # One may leave out what the other spells out: compare again with every default filled in.
    filled = _compare(_with_defaults(first), _with_defaults(other))
    return {key: values for key, values in filled.items() if key in found}


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings in the form that transformers writes since release 5."""
    settled = dict(config)
    if "rope_theta" in settled and not settled.get("rope_parameters"):
        scaling = settled.pop("rope_scaling", None) or {}
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


def _with_defaults(weights: Weights) -> dict[str, Any]:
    from transformers import AutoConfig

    config = dict(weights.config)
    model_type = config.pop("model_type", None)
    try:
        return dict(AutoConfig.for_model(model_type, **config).to_dict())
    except ValueError:
        # An architecture that transformers doesn't know: compare what is written.
        return dict(weights.config)


def _check_vocabulary(first: Weights, other: Weights) -> None:
    ours, theirs = _vocabulary(first), _vocabulary(other)
    for key in sorted({*ours, *theirs}, key=str):
        if ours.get(key) != theirs.get(key):
            raise MergeError(
                f"tokenizers differ: {key!r} is {_short(ours.get(key))} in {first.folders[0]} "
                f"and {_short(theirs.get(key))} in {other.folders[0]}; "
                "only models with one vocabulary can be summed"
            )


def _vocabulary(weights: Weights) -> dict[str, Any]:
    """Token -> id, the merges and the pre-tokenizer; without a tokenizer.json, the raw files."""
    files = {file.name: file for file in tokenizer_files(weights)}
    if "tokenizer.json" not in files:
        return {
            name: file.read_bytes()
            for name, file in files.items()
            if name in ("vocab.json", "merges.txt", "tokenizer.model")
        }
    content = read_json(files["tokenizer.json"])
    model = content.get("model", {})
    vocab = model.get("vocab", {})
    tokens = (
        dict(vocab)
        if isinstance(vocab, dict)
        else {str(one): place for place, one in enumerate(vocab)}
    )
    tokens |= {one["content"]: one["id"] for one in content.get("added_tokens") or ()}
    merges = [one if isinstance(one, str) else " ".join(one) for one in model.get("merges") or ()]
    return tokens | {
        "the list of merges": merges,
        "the pre-tokenizer": content.get("pre_tokenizer"),
    }


def _tokenizer_settings(first: Weights, other: Weights) -> dict[str, list[Any]]:
    values = [_presence(one) | _special_tokens(one) for one in (first, other)]
    return {
        key: [one[key] for one in values] for key in values[0] if values[0][key] != values[1][key]
    }


def _presence(weights: Weights) -> dict[str, Any]:
    return {"tokenizer": bool(tokenizer_files(weights)), "chat_template": chat_template(weights)}


def _special_tokens(weights: Weights) -> dict[str, Any]:
    file = next(
        (one for one in tokenizer_files(weights) if one.name == "tokenizer_config.json"), None
    )
    config = read_json(file) if file else {}
    found = {key: config.get(key) for key in SPECIAL}
    return {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in found.items()
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
