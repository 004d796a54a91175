"""What must agree before checkpoints are summed: tensors, configuration, tokenizer, template.

Read from headers and JSON alone. A difference that changes what the model computes is an error that
names both values; where one side can be chosen, `config_from` chooses it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dualign.checkpoints.checkpoint import Weights, read_json
from dualign.checkpoints.shards import chat_template, tokenizer_files
from dualign.errors import MergeError

# Keys of config.json that don't change what the model computes from token ids when it is evaluated.
NEUTRAL = frozenset({
    "_name_or_path", "_commit_hash", "_attn_implementation", "transformers_version", "auto_map",
    "dtype", "torch_dtype", "use_cache", "initializer_range", "attention_dropout", "pretraining_tp",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "return_dict",
    "output_attentions", "output_hidden_states", "chunk_size_feed_forward",
    "id2label", "label2id", "problem_type",
})  # fmt: skip
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_CHOOSE = "set config_from to the model whose setting is meant"


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
            if entry.dtype != other.entries[name].dtype:
                raise MergeError(
                    f"{name} is {entry.dtype} in {first.folders[0]} and "
                    f"{other.entries[name].dtype} in {other.folders[0]}: input can't "
                    "choose a type; set dtype to float32, bfloat16 or float16"
                )


def check_configs(models: Sequence[Weights], *, chosen: bool) -> dict[str, list[Any]]:
    """The keys that differ, with both values; empty unless `chosen`.

    Raises:
        MergeError: they differ, and `chosen` is false; or tie_word_embeddings differs.
    """
    found: dict[str, list[Any]] = {}
    first = models[0]
    for other in models[1:]:
        for key, values in _differences(first, other).items():
            where = (
                f"{key}: {values[0]!r} in {first.folders[0]}, {values[1]!r} in {other.folders[0]}"
            )
            if key == "tie_word_embeddings":
                raise MergeError(f"{where}; tied and untied models can't be summed")
            if not chosen:
                raise MergeError(f"{where}; the merged model can have only one: {_CHOOSE}")
            found[key] = values
    return found


def check_tokenizers(models: Sequence[Weights], *, chosen: bool) -> dict[str, list[Any]]:
    """The special tokens and templates that differ, by name; empty unless `chosen`.

    Raises:
        MergeError: the vocabularies differ; or the rest does, and `chosen` is false.
    """
    found: dict[str, list[Any]] = {}
    first = models[0]
    for other in models[1:]:
        if tokenizer_files(first) and tokenizer_files(other):
            _check_vocabulary(first, other)
        for key, values in _tokenizer_settings(first, other).items():
            if not chosen:
                ours, theirs = map(_short, values)
                shown = f"{ours} in {first.folders[0]}, {theirs} in {other.folders[0]}"
                raise MergeError(f"{key}: {shown}; the merged model can have only one: {_CHOOSE}")
            found[key] = [_short(value) for value in values]
    return found


def _differences(first: Weights, other: Weights) -> dict[str, list[Any]]:
    if not _compare(first.config, other.config):
        return {}
    # One may leave out what the other spells out: compare again with every default filled in.
    return _compare(_with_defaults(first), _with_defaults(other))


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
        return dict(
            weights.config
        )  # an architecture that transformers doesn't know: compare what is written


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
