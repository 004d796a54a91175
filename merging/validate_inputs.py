"""What must agree before checkpoints are merged: tensors, configuration, tokenizer, template.

Read from headers and JSON alone. A difference is one of three kinds. Some can't be merged at all:
other tensors, other architectures, tied against untied. Some change what the model computes or where
it stops, and can only have one value: the config has to say whose, by `config_from`,
`tokenizer_from` or `tokenizer_source`, and the answer goes into merge.json. The rest changes
nothing. All problems are told at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dualign.checkpoints.checkpoint import Weights, embedding_name, read_json
from dualign.checkpoints.dtypes import DTYPE_NAMES
from dualign.checkpoints.shards import chat_template, nearest_file, tokenizer_files
from dualign.errors import MergeError
from dualign.merging.config_diff import FATAL, config_differences
from dualign.merging.tokenizer.token_id_fields import ids_in
from dualign.merging.tokenizer.vocabulary import Tokenizer, first_difference

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
CONFIG = "set config_from to the model whose config is meant"
TOKENS = "set config_from or tokenizer_from to the model whose tokenizer is meant"
VOCABULARY = (
    "set tokenizer_source to the model whose vocabulary is meant, or to union, and rows go by token"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What the config has decided, and what it needs."""

    config: bool
    tokenizer: bool
    template: bool
    vocabulary: bool
    """the models have been brought to one vocabulary"""
    slices: bool
    """layers are put together anew, so models may have different numbers of them"""
    one_dtype: bool
    """the stored types are kept, so they have to agree"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Something in which models differ."""

    key: str
    values: Mapping[str, Any]
    """by model folder"""
    problem: str | None
    """why it can't be merged, or what has to be chosen; None: it is decided"""

    def told(self) -> str:
        shown = ", ".join(f"{_short(value)} in {folder}" for folder, value in self.values.items())
        return f"{self.key}: {shown}{'; ' if shown else ''}{self.problem}"


def check(
    models: Mapping[str, Weights],
    tokenizers: Sequence[Tokenizer],
    choices: Choices,
    *,
    file: str,
    donor: str,
    tokenizer_donor: str,
) -> dict[str, dict[str, Any]]:
    """The differences that the config decided, by key: each model's value, and whose is taken.

    Raises:
        MergeError: the models can't be merged, or something isn't decided; with all of it.
    """
    every = list(models.values())
    configs = list(check_configs(every, choices))
    others = list(check_tokenizers(every, tokenizers, choices))
    problems = [one.told() for one in (*configs, *others) if one.problem]
    problems += check_rows(every)
    if not choices.slices:
        problems += check_tensors(every)
    if choices.one_dtype:
        problems += check_dtypes(every)
    if problems:
        raise MergeError(_list(file, list(dict.fromkeys(problems))))
    return _decided(configs, donor) | _decided(others, tokenizer_donor)


def _decided(found: Sequence[Difference], donor: str) -> dict[str, dict[str, Any]]:
    decided: dict[str, dict[str, Any]] = {}
    for one in found:
        decided.setdefault(one.key, {}).update(one.values)
    return {key: {**values, "taken_from": donor} for key, values in decided.items()}


def _list(file: str, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    lines = "\n".join(f"  {one}" for one in problems)
    return f"{file}: {len(problems)} things keep these models from being merged\n{lines}"


def check_rows(models: Sequence[Weights]) -> Iterator[str]:
    """Models whose config.json has another vocabulary than their embedding."""
    for one in models:
        name = embedding_name(one.entries)
        size = one.config.get("vocab_size")
        if name and isinstance(size, int) and one.entries[name].shape[0] != size:
            yield (
                f"{one.folders[0]}: config.json says vocab_size: {size}, and {name} has "
                f"{one.entries[name].shape[0]} rows; correct the one that is wrong"
            )


def check_tensors(models: Sequence[Weights]) -> Iterator[str]:
    """The first difference of two models' tensors."""
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


def check_dtypes(models: Sequence[Weights]) -> Iterator[str]:
    """The first tensor that has no one type, as `dtype: input` needs."""
    for first, other in pairwise(models):
        for name, entry in first.entries.items():
            if name in other.entries and entry.dtype != other.entries[name].dtype:
                yield (
                    f"{name} is {DTYPE_NAMES[entry.dtype]} in {first.folders[0]} and "
                    f"{DTYPE_NAMES[other.entries[name].dtype]} in {other.folders[0]}: there is no one "
                    "type to keep; set dtype to float32, bfloat16 or float16"
                )
                break


def check_configs(models: Sequence[Weights], choices: Choices) -> Iterator[Difference]:
    """The keys of config.json, and the ids in generation_config.json, that differ."""
    for first, other in pairwise(models):
        for key, values in config_differences(first, other, slices=choices.slices).items():
            problem: str | None
            if key == "vocab_size":
                problem = f"models of different sizes can't be summed row by row: {VOCABULARY}"
            elif key == "tie_word_embeddings":
                problem = "tied and untied models can't be merged"
            elif key in FATAL:
                problem = "models that differ in it can't be merged"
            else:
                problem = _unless(choices.config, CONFIG)
            yield _difference(key, (first, other), values, problem)
        # Ids that were moved to another vocabulary aren't in the file; they are those of the donor.
        ours, theirs = (_generation_ids(one) for one in (first, other))
        for key in sorted(set(ours) & set(theirs)) if not choices.vocabulary else ():
            if ours[key] != theirs[key]:
                name, values = f"generation_config.{key}", [ours[key], theirs[key]]
                yield _difference(name, (first, other), values, _unless(choices.config, CONFIG))


def check_tokenizers(
    models: Sequence[Weights], tokenizers: Sequence[Tokenizer], choices: Choices
) -> Iterator[Difference]:
    """The vocabularies, special tokens and templates that differ."""
    for ours, theirs in pairwise(tokenizers):
        found = None if choices.vocabulary else first_difference(ours, theirs)
        if found is not None:
            yield Difference(
                key="tokenizers differ",
                values={},
                problem=f"{found[0]!r} is {_short(found[1])} in {ours.folder} and "
                f"{_short(found[2])} in {theirs.folder}: {VOCABULARY}",
            )
    same = all(one.hashes == tokenizers[0].hashes for one in tokenizers)
    settings = [
        _presence(one) | _special_tokens(one) | ({} if same else _around(tokenizer))
        for one, tokenizer in zip(models, tokenizers, strict=True)
    ]
    for (first, first_has), (other, other_has) in pairwise(zip(models, settings, strict=True)):
        # An added token that only one of them has is a difference of vocabulary, told already.
        for key in sorted(set(first_has) & set(other_has)):
            if first_has[key] != other_has[key]:
                chosen = choices.template if key == "chat_template" else choices.tokenizer
                values = [first_has[key], other_has[key]]
                yield _difference(key, (first, other), values, _unless(chosen, TOKENS))


def _unless(chosen: bool, advice: str) -> str | None:
    return None if chosen else f"the merged model can have only one: {advice}"


def _difference(
    key: str, pair: tuple[Weights, Weights], values: Sequence[Any], problem: str | None
) -> Difference:
    folders = [str(one.folders[0]) for one in pair]
    return Difference(key=key, values=dict(zip(folders, values, strict=True)), problem=problem)


def _generation_ids(weights: Weights) -> dict[str, list[int]]:
    files = nearest_file(weights, "generation_config.json")
    return ids_in(read_json(files[0])) if files else {}


def _presence(weights: Weights) -> dict[str, Any]:
    return {"tokenizer": bool(tokenizer_files(weights)), "chat_template": chat_template(weights)}


def _special_tokens(weights: Weights) -> dict[str, Any]:
    files = {file.name: file for file in tokenizer_files(weights)}
    file = files.get("tokenizer_config.json")
    config = read_json(file) if file else {}
    found = {key: config.get(key) for key in SPECIAL}
    return {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in found.items()
    }


def _around(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the tokenizer puts around a text, by token (a BOS or none), and how it finds added tokens."""
    content = tokenizer.content() if tokenizer.file else {}
    found = {key: _without_ids(content.get(key)) for key in ("post_processor", "decoder")}
    for one in content.get("added_tokens") or ():
        token, flags = one["content"], {name: bool(one.get(name)) for name in FLAGS}
        found[f"added token {token!r}"] = [name for name, on in flags.items() if on]
    return found


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(one) for key, one in value.items() if key != "ids"}
    return [_without_ids(one) for one in value] if isinstance(value, list) else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
