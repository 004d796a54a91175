"""One vocabulary for models that have different ones, and the source of each model's rows for it.

A token keeps its row, whatever its id was. A model that lacks a token gets a row for it: the one
that the config names, else that of the base model, else that of the one model that has the token,
else the mean of those that do (as in mergekit). Rows without a token (padding) stay where they are.

    merged vocabulary   0 <s>   1 the   2 cat   3 <think>
    model a             0 <s>   1 cat   2 the                row map [0,  2, 1, -1]
    model b             0 <s>   1 the   2 <think>            row map [0,  1, -1, 2]

a's row for <think> is b's row 2, and b's row for cat is a's row 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.dtypes import Array
from dualign.errors import MergeError, excerpt
from dualign.merging.config import Merge, TokenRow, VocabularyConfig
from dualign.merging.tokenizer.vocabulary import (
    TokenizerFiles,
    Vocabulary,
    embedding_rows,
    first_difference,
    missing_pieces,
    read_vocabulary,
    splitting,
)

RowSource = tuple[tuple[str, int], ...]
"""(model, row) pairs: one is copied, several are averaged, none gives zeros"""

_MAX_LISTED = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyMapping:
    """The merged model's vocabulary, and the map from its rows to those of each model."""

    base_tokenizer: str
    """the model whose tokenizer the vocabulary starts from"""
    vocabulary: Vocabulary
    added: tuple[str, ...]
    """tokens that the base tokenizer doesn't have"""
    vocabularies: Mapping[str, Vocabulary]
    """by model"""
    row_maps: Mapping[str, Array]
    """by model: [rows of the merged vocabulary] -> the model's row, or -1 if it has none"""
    row_sources: Mapping[int, RowSource]
    """by row of the merged vocabulary that a model lacks"""


def map_vocabularies(
    models: Mapping[str, Weights],
    tokenizers: Sequence[TokenizerFiles],
    merge: Merge,
    tokenizer_source: str,
) -> VocabularyMapping | None:
    """Build the mapping that the config asks for; None if the models have one vocabulary.

    Raises:
        MergeError: the tokenizers split text differently, or a token has no row.
    """
    config = merge.tokens or VocabularyConfig()
    requested = merge.tokens is not None or merge.tokenizer_from is not None
    plain = not config.rows and config.pad_to_multiple_of is None
    if not requested or (plain and _have_one_vocabulary(models, tokenizers)):
        return None
    vocabularies = _read_vocabularies(models, tokenizers, tokenizer_source)
    _require_same_splitting(vocabularies)
    base_tokenizer = tokenizer_source
    if config.union:
        base_tokenizer = _union_base(vocabularies, merge, tokenizer_source)
    base = vocabularies[base_tokenizer]
    added = _added_tokens(vocabularies, base_tokenizer, config)
    min_rows = base.with_added(added, base.rows).min_rows
    multiple = config.pad_to_multiple_of
    rows = max(min_rows, base.rows) if multiple is None else -(-min_rows // multiple) * multiple
    vocabulary = base.with_added(added, rows)
    row_maps = {name: _row_map(own, vocabulary) for name, own in vocabularies.items()}
    chosen = _chosen_rows(config.rows, vocabulary, vocabularies, row_maps)
    row_sources = {**_default_rows(vocabulary, row_maps, merge.base_model, chosen), **chosen}
    return VocabularyMapping(
        base_tokenizer=base_tokenizer,
        vocabulary=vocabulary.without_content(),
        added=tuple(token["content"] for token in added),
        vocabularies={name: own.without_content() for name, own in vocabularies.items()},
        row_maps=row_maps,
        row_sources=row_sources,
    )


def _have_one_vocabulary(
    models: Mapping[str, Weights], tokenizers: Sequence[TokenizerFiles]
) -> bool:
    sizes = {str(weights.config.get("vocab_size")) for weights in models.values()}
    return len(sizes) == 1 and all(
        first_difference(tokenizers[0], other) is None for other in tokenizers[1:]
    )


def _read_vocabularies(
    models: Mapping[str, Weights], tokenizers: Sequence[TokenizerFiles], tokenizer_source: str
) -> dict[str, Vocabulary]:
    """Read each model's; one without a tokenizer has `tokenizer_source`'s, if it has its rows."""
    vocabularies = {
        name: read_vocabulary(tokenizer, embedding_rows(weights))
        for (name, weights), tokenizer in zip(models.items(), tokenizers, strict=True)
    }
    default = vocabularies[tokenizer_source]
    if default is None:
        raise MergeError(
            f"{models[tokenizer_source].folders[0]}: has no tokenizer to take; name another model"
        )
    for name, vocabulary in vocabularies.items():
        rows = embedding_rows(models[name])
        if vocabulary is None and rows != default.rows:
            raise MergeError(
                f"{models[name].folders[0]}: has no tokenizer, and {rows} rows where "
                f"{default.file.parent} has {default.rows}; put its tokenizer beside it"
            )
    return {name: vocabulary or default for name, vocabulary in vocabularies.items()}


def _require_same_splitting(vocabularies: Mapping[str, Vocabulary]) -> None:
    first, *others = vocabularies.values()
    for other in others:
        ours, theirs = splitting(first), splitting(other)
        for key in ours:
            if ours[key] != theirs[key]:
                raise MergeError(
                    f"{first.file} and {other.file}: {key} differs: {excerpt(ours[key])} and "
                    f"{excerpt(theirs[key])}; such tokenizers cut text differently, and no choice "
                    "of rows makes up for it"
                )


def _union_base(vocabularies: Mapping[str, Vocabulary], merge: Merge, tokenizer_source: str) -> str:
    """Return a model whose tokenizer makes the pieces of all: `tokenizer_source` if it can."""
    order = [tokenizer_source]
    if merge.tokenizer_from is None:
        order += vocabularies
    for name in order:
        whole = vocabularies[name]
        if not any(missing_pieces(whole, part) for part in vocabularies.values()):
            return name
    base = vocabularies[tokenizer_source]
    other = next(part for part in vocabularies.values() if missing_pieces(base, part))
    lacks = missing_pieces(other, base)
    raise MergeError(
        f"{base.file.parent} and {other.file.parent}: no union: "
        f"{_first_three(missing_pieces(base, other))} of the second can't be made by the first's tokenizer"
        + (
            f", nor {_first_three(lacks)} of the first by the second's"
            if lacks
            else ", which tokenizer_from names"
        )
        + "; a union needs a tokenizer that makes the pieces of all; "
        "set tokenizer_source to the model whose tokenizer is meant"
    )


def _added_tokens(
    vocabularies: Mapping[str, Vocabulary], base_tokenizer: str, config: VocabularyConfig
) -> list[Mapping[str, Any]]:
    """Return the tokens to add: in a union those of other models, and those in `config`."""
    base = vocabularies[base_tokenizer]
    added: dict[str, Mapping[str, Any]] = {}
    for vocabulary in vocabularies.values() if config.union else ():
        for name, token in vocabulary.added.items():
            if name not in base.ids:
                added.setdefault(name, token)
            elif name not in base.added:
                raise MergeError(
                    f"{vocabulary.file}: {name!r} is an added token, and in {base.file} one that text "
                    f"is cut into like any other; add it to the tokenizer of {base_tokenizer} too"
                )
    # The flags that tokenizers gives to a text that is added.
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    for row in config.rows:
        if row.token not in base.ids:
            added.setdefault(
                row.token, {"id": -1, "content": row.token, **flags, "normalized": True}
            )
    return list(added.values())


def _row_map(own: Vocabulary, merged: Vocabulary) -> Array:
    """Return for each row of the merged vocabulary the model's own row, or -1."""
    row_map = np.full(merged.rows, -1, np.int64)
    merged_ids = np.fromiter(merged.ids.values(), np.int64, len(merged.ids))
    own_ids = np.fromiter(
        (own.ids.get(token, -1) for token in merged.ids), np.int64, len(merged_ids)
    )
    row_map[merged_ids] = np.where(own_ids < own.rows, own_ids, -1)
    is_padding = np.ones(merged.rows, bool)
    is_padding[merged_ids] = False
    rows = np.arange(min(own.rows, merged.rows))
    stays = is_padding[: len(rows)] & ~np.isin(rows, list(own.ids.values()))
    row_map[rows[stays]] = rows[stays]
    return row_map


def _chosen_rows(
    rows: Sequence[TokenRow],
    vocabulary: Vocabulary,
    vocabularies: Mapping[str, Vocabulary],
    row_maps: Mapping[str, Array],
) -> dict[int, RowSource]:
    """Return the sources that the config names; with `force` remove the models' own rows."""
    chosen: dict[int, RowSource] = {}
    for row in rows:
        source = () if row.model is None else ((row.model, _row_in(row, vocabularies[row.model])),)
        chosen[vocabulary.ids[row.token]] = source
    for row in rows:
        for row_map in row_maps.values() if row.force else ():
            row_map[vocabulary.ids[row.token]] = -1
    return chosen


def _row_in(token_row: TokenRow, vocabulary: Vocabulary) -> int:
    token = token_row.token if token_row.row is None else token_row.row
    row = token if isinstance(token, int) else vocabulary.ids.get(token, -1)
    if not 0 <= row < vocabulary.rows:
        what = f"no row {row}" if isinstance(token, int) else f"no row for {token!r}"
        raise MergeError(
            f"tokenizer.tokens.{token_row.token}: {vocabulary.file.parent} has {what} "
            f"(it has {vocabulary.rows} rows)"
        )
    return row


def _default_rows(
    vocabulary: Vocabulary,
    row_maps: Mapping[str, Array],
    base_model: str | None,
    chosen: Mapping[int, RowSource],
) -> dict[int, RowSource]:
    """Return for each row that a model lacks the base's row, else those of all its owners."""
    lacking = np.flatnonzero((np.stack(list(row_maps.values())) < 0).any(axis=0))
    tokens = {token_id: token for token, token_id in vocabulary.ids.items()}
    sources: dict[int, RowSource] = {}
    for row in map(int, lacking):
        owners = {name: int(own[row]) for name, own in row_maps.items() if own[row] >= 0}
        if base_model in owners:
            owners = {base_model: owners[base_model]}
        if not owners and row in tokens and row not in chosen:
            token = tokens[row]
            raise MergeError(
                f"{vocabulary.file}: no model has a row for {token!r} (id {row}); say where it "
                f"comes from: tokenizer: {{tokens: {{{token!r}: {{source: {{kind: zero}}}}}}}}"
            )
        sources[row] = tuple(owners.items())
    return sources


def mapping_decisions(mapping: VocabularyMapping) -> dict[str, dict[str, Any]]:
    """Summarize the mapping in the form of the conflicts that `validate_inputs` resolved."""
    merged = mapping.vocabulary
    sizes = {
        str(own.file.parent): f"{len(own.ids)} tokens in {own.rows} rows"
        for own in mapping.vocabularies.values()
    }
    result = f"{mapping.base_tokenizer}, now {len(merged.ids)} tokens in {merged.rows} rows"
    decisions: dict[str, dict[str, Any]] = {"vocabulary": {**sizes, "taken_from": result}}
    for name, own in mapping.vocabularies.items():
        lost = [token for token in own.ids if token not in merged.ids]
        if lost:
            decisions[f"tokens of {name} left out"] = {
                "tokens": lost[:_MAX_LISTED],
                "taken_from": f"{len(lost)}: {_first_three(lost)}",
            }
    return decisions


def mapping_record(mapping: VocabularyMapping) -> dict[str, Any]:
    """Return the entry of merge.json: added tokens, and for each model the sources of filled rows.

    At most a thousand different sources are listed.
    """
    tokens = {token_id: token for token, token_id in mapping.vocabulary.ids.items()}
    filled: dict[str, dict[str, Any]] = {}
    for model, row_map in mapping.row_maps.items():
        groups: dict[str, list[str | int]] = {}
        for row in map(int, np.flatnonzero(row_map < 0)):
            source = mapping.row_sources[row]
            text = " and ".join(f"row {own} of {name}" for name, own in source) or "zeros"
            if len(source) > 1:
                text = f"the mean of {text}"
            groups.setdefault(text, []).append(tokens.get(row, row))
        listed = dict(list(groups.items())[:_MAX_LISTED])
        filled[model] = {"rows": int((row_map < 0).sum()), "from": listed}
    return {
        "tokenizer": mapping.base_tokenizer,
        "tokens": len(mapping.vocabulary.ids),
        "rows": mapping.vocabulary.rows,
        "added": list(mapping.added),
        "filled": filled,
    }


def _first_three(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return (
        ", ".join(text if text.startswith("the merge") else repr(text) for text in texts[:3]) + more
    )
