"""Check before a merge that its models agree: tensors, configuration, tokenizer, template.

Headers and JSON alone are read. A difference is one of three kinds. Some can't be merged: other
tensors, other architectures, tied against untied. Some change what the model computes or where it
stops, and can have only one value: the config has to say whose, by `config_from`, `tokenizer_from`
or `tokenizer_source`, and the answer goes into merge.json. Other differences are ignored. All
problems are reported together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dualign.checkpoints.checkpoint import Weights, embedding_name, read_json
from dualign.checkpoints.dtypes import DTYPE_NAMES
from dualign.checkpoints.shards import (
    MORE_TEMPLATES,
    chat_template,
    nearest_file,
    tokenizer_files,
)
from dualign.errors import MergeError, excerpt
from dualign.merging.config_diff import FATAL, config_differences
from dualign.merging.tokenizer.token_id_fields import ids_in
from dualign.merging.tokenizer.vocabulary import TokenizerFiles, first_difference

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_TEMPLATE_KEYS = ("chat_template", MORE_TEMPLATES)
_TOKEN_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
_CONFIG_ADVICE = "set config_from to the model whose config is meant"
_TOKENIZER_ADVICE = "set config_from or tokenizer_from to the model whose tokenizer is meant"
_VOCABULARY_ADVICE = (
    "set tokenizer_source to the model whose vocabulary is meant, or to union, and rows go by token"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConflictPolicy:
    """The conflicts that the config resolves, and the agreement that it needs."""

    config: bool
    """it says whose config.json is taken"""
    tokenizer: bool
    """it says whose tokenizer is taken"""
    template: bool
    """it says which chat template is taken"""
    mapped_vocabulary: bool
    """the models were mapped to one vocabulary"""
    slices: bool
    """layers are stacked anew, so models may have different numbers of them"""
    keep_dtype: bool
    """the stored types are kept, so they have to agree"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Difference:
    """A setting, token or file in which models differ."""

    key: str
    values: Mapping[str, Any]
    """by model folder"""
    problem: str | None
    """why it can't be merged, or what has to be chosen; None: the config resolves it"""

    def describe(self) -> str:
        shown = ", ".join(f"{excerpt(value)} in {folder}" for folder, value in self.values.items())
        return f"{self.key}: {shown}{'; ' if shown else ''}{self.problem}"


def validate_inputs(
    models: Mapping[str, Weights],
    tokenizers: Sequence[TokenizerFiles],
    policy: ConflictPolicy,
    *,
    file: str,
    config_source: str,
    tokenizer_source: str,
) -> dict[str, dict[str, Any]]:
    """Return the conflicts that the config resolved: by key, each model's value and whose is taken.

    Raises:
        MergeError: the models can't be merged, or a conflict isn't resolved; lists all problems.
    """
    weights = list(models.values())
    configs = list(_config_differences(weights, policy))
    others = list(_tokenizer_differences(weights, tokenizers, policy))
    problems = [diff.describe() for diff in (*configs, *others) if diff.problem]
    problems += _row_problems(weights)
    if not policy.slices:
        problems += _tensor_problems(weights)
    if policy.keep_dtype:
        problems += _dtype_problems(weights)
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise MergeError(problems[0])
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise MergeError(
            f"{file}: {len(problems)} things keep these models from being merged\n{lines}"
        )
    return _resolved(configs, config_source) | _resolved(others, tokenizer_source)


def _resolved(differences: Sequence[_Difference], source: str) -> dict[str, dict[str, Any]]:
    conflicts: dict[str, dict[str, Any]] = {}
    for difference in differences:
        conflicts.setdefault(difference.key, {}).update(difference.values)
    return {key: {**values, "taken_from": source} for key, values in conflicts.items()}


def _row_problems(models: Sequence[Weights]) -> Iterator[str]:
    """Yield the models whose config.json has another vocabulary size than their embedding."""
    for weights in models:
        name = embedding_name(weights.entries)
        size = weights.config.get("vocab_size")
        if name and isinstance(size, int) and weights.entries[name].shape[0] != size:
            yield (
                f"{weights.folders[0]}: config.json says vocab_size: {size}, and {name} has "
                f"{weights.entries[name].shape[0]} rows; correct the one that is wrong"
            )


def _tensor_problems(models: Sequence[Weights]) -> Iterator[str]:
    """Yield the first difference in names or shapes of each pair of models."""
    for first, other in pairwise(models):
        where = f"{first.folders[0]} and {other.folders[0]}"
        for name in sorted(set(first.entries) | set(other.entries)):
            if (name in first.entries) != (name in other.entries):
                holder = first if name in first.entries else other
                yield (
                    f"{where}: only {holder.folders[0]} has the tensor {name}; "
                    "both must have the same tensors"
                )
                break
            ours, theirs = first.entries[name].shape, other.entries[name].shape
            if ours != theirs:
                yield f"{where}: {name} is {ours} and {theirs}; shapes must agree"
                break


def _dtype_problems(models: Sequence[Weights]) -> Iterator[str]:
    """Yield the first tensor of each pair of models that is stored in two types."""
    for first, other in pairwise(models):
        for name, entry in first.entries.items():
            if name in other.entries and entry.dtype != other.entries[name].dtype:
                yield (
                    f"{name} is {DTYPE_NAMES[entry.dtype]} in {first.folders[0]} and "
                    f"{DTYPE_NAMES[other.entries[name].dtype]} in {other.folders[0]}: there is no one "
                    "type to keep; set dtype to float32, bfloat16 or float16"
                )
                break


def _config_differences(models: Sequence[Weights], policy: ConflictPolicy) -> Iterator[_Difference]:
    """Yield the keys of config.json, and the ids in generation_config.json, that differ."""
    for first, other in pairwise(models):
        for key, values in config_differences(first, other, slices=policy.slices).items():
            problem: str | None
            if key == "vocab_size":
                problem = (
                    f"models of different sizes can't be summed row by row: {_VOCABULARY_ADVICE}"
                )
            elif key == "tie_word_embeddings":
                problem = "tied and untied models can't be merged"
            elif key in FATAL:
                problem = "models that differ in it can't be merged"
            else:
                problem = _unless(policy.config, _CONFIG_ADVICE)
            yield _difference(key, (first, other), values, problem)
        if policy.mapped_vocabulary:
            continue  # the ids are those of config_source, whatever the files have
        ours, theirs = (_generation_ids(weights) for weights in (first, other))
        for key in sorted(set(ours) & set(theirs)):
            if ours[key] != theirs[key]:
                name, values = f"generation_config.{key}", [ours[key], theirs[key]]
                problem = _unless(policy.config, _CONFIG_ADVICE)
                yield _difference(name, (first, other), values, problem)


def _tokenizer_differences(
    models: Sequence[Weights], tokenizers: Sequence[TokenizerFiles], policy: ConflictPolicy
) -> Iterator[_Difference]:
    """Yield the differences in vocabularies, special tokens and templates."""
    for ours, theirs in pairwise(tokenizers):
        difference = None if policy.mapped_vocabulary else first_difference(ours, theirs)
        if difference is not None:
            key, our_value, their_value = difference
            yield _Difference(
                key="tokenizers differ",
                values={},
                problem=f"{key!r} is {excerpt(our_value)} in {ours.folder} and "
                f"{excerpt(their_value)} in {theirs.folder}: {_VOCABULARY_ADVICE}",
            )
    same = all(tokenizer.hashes == tokenizers[0].hashes for tokenizer in tokenizers)
    settings = [
        _presence(weights)
        | _special_tokens(weights)
        | ({} if same else _added_text(tokenizer.content()))
        for weights, tokenizer in zip(models, tokenizers, strict=True)
    ]
    for (first, first_has), (other, other_has) in pairwise(zip(models, settings, strict=True)):
        # An added token that only one of them has is a difference of vocabulary, reported above.
        for key in sorted(set(first_has) & set(other_has)):
            if first_has[key] != other_has[key]:
                chosen = policy.template if key in _TEMPLATE_KEYS else policy.tokenizer
                values = [first_has[key], other_has[key]]
                yield _difference(key, (first, other), values, _unless(chosen, _TOKENIZER_ADVICE))


def _unless(chosen: bool, advice: str) -> str | None:
    return None if chosen else f"the merged model can have only one: {advice}"


def _difference(
    key: str, pair: tuple[Weights, Weights], values: Sequence[Any], problem: str | None
) -> _Difference:
    folders = [str(weights.folders[0]) for weights in pair]
    return _Difference(key=key, values=dict(zip(folders, values, strict=True)), problem=problem)


def _generation_ids(weights: Weights) -> dict[str, list[int]]:
    files = nearest_file(weights, "generation_config.json")
    return ids_in(read_json(files[0])) if files else {}


def _presence(weights: Weights) -> dict[str, Any]:
    files = tokenizer_files(weights)
    named = {
        file.stem: file.read_text(encoding="utf-8")
        for file in files
        if file.parent.name == MORE_TEMPLATES
    }
    more = {MORE_TEMPLATES: named} if named else {}
    return {"tokenizer": bool(files), "chat_template": chat_template(weights), **more}


def _special_tokens(weights: Weights) -> dict[str, Any]:
    files = {file.name: file for file in tokenizer_files(weights)}
    file = files.get("tokenizer_config.json")
    config = read_json(file) if file else {}
    tokens = {key: config.get(key) for key in _SPECIAL_TOKENS}
    return {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in tokens.items()
    }


def _added_text(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a tokenizer.json finds added tokens, and the tokens it puts around a text (BOS).

    Without ids, which differ between vocabularies.
    """
    settings = {key: _without_ids(content.get(key)) for key in ("post_processor", "decoder")}
    for token in content.get("added_tokens") or ():
        flags = [name for name in _TOKEN_FLAGS if token.get(name)]
        settings[f"added token {token['content']!r}"] = flags
    return settings


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "ids"}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value
