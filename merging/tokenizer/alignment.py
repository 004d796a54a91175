"""One vocabulary for models that have different ones, and where each model's rows for it come from.

A token keeps its row, wherever its id was. A model that lacks a token gets a row for it: what the
config says, else that of the base model, else that of the one model that has the token, else the
mean of those that do (as in mergekit). Rows that belong to no token (padding) stay at their place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualign.checkpoints.checkpoint import Weights
from dualign.checkpoints.dtypes import Array
from dualign.errors import MergeError
from dualign.merging.config import Merge, TokenRow, VocabularyConfig
from dualign.merging.tokenizer.vocabulary import (
    Tokenizer,
    Vocabulary,
    cut,
    first_difference,
    missing_in,
    read_vocabulary,
    rows_of,
)

Source = tuple[tuple[str, int], ...]
"""models and their rows: one is taken, of several the mean; none: zeros"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The merged model's vocabulary, and how each model gets there."""

    lead: str
    """the model whose tokenizer it starts from"""
    vocabulary: Vocabulary
    new: tuple[str, ...]
    """tokens that the lead's tokenizer doesn't have"""
    known: Mapping[str, Vocabulary]
    """the vocabulary of each model"""
    own: Mapping[str, Array]
    """for each model and row of the merged model, its own row; -1: it has none"""
    sources: Mapping[int, Source]
    """for each row that a model lacks, where it comes from"""


def align(
    models: Mapping[str, Weights], tokenizers: Sequence[Tokenizer], merge: Merge, donor: str
) -> Alignment | None:
    """The alignment that the config asks for; None when there is nothing to align.

    Raises:
        MergeError: there is no honest one, or a token has no row.
    """
    wanted = merge.tokens or VocabularyConfig()
    chosen = merge.tokens is not None or merge.tokenizer_from is not None
    if not chosen or (
        _all_same(models, tokenizers)
        and wanted in (VocabularyConfig(), VocabularyConfig(union=True))
    ):
        return None
    known = _vocabularies(models, tokenizers, donor)
    _require_one_way_to_cut(known)
    lead = _lead(known, merge, donor) if wanted.union else donor
    new = _new_tokens(known, lead, wanted)
    full = known[lead].with_added(new, known[lead].rows)
    vocabulary = known[lead].with_added(new, _size(full, wanted.pad_to_multiple_of))
    own = {name: _own(one, vocabulary) for name, one in known.items()}
    chosen_rows = _chosen(wanted.rows, vocabulary, known, own)
    sources = {**_defaults(vocabulary, own, merge.base_model, chosen_rows), **chosen_rows}
    return Alignment(
        lead=lead,
        vocabulary=vocabulary.slim(),
        new=tuple(one["content"] for one in new),
        known={name: one.slim() for name, one in known.items()},
        own=own,
        sources=sources,
    )


def _all_same(models: Mapping[str, Weights], tokenizers: Sequence[Tokenizer]) -> bool:
    sizes = {str(one.config.get("vocab_size")) for one in models.values()}
    return len(sizes) == 1 and all(
        first_difference(tokenizers[0], one) is None for one in tokenizers[1:]
    )


def _vocabularies(
    models: Mapping[str, Weights], tokenizers: Sequence[Tokenizer], donor: str
) -> dict[str, Vocabulary]:
    """Of every model; one that has no tokenizer, and as many rows as the donor, has the donor's."""
    found = {
        name: read_vocabulary(tokenizer, rows_of(one))
        for (name, one), tokenizer in zip(models.items(), tokenizers, strict=True)
    }
    lead = found[donor]
    if lead is None:
        raise MergeError(
            f"{models[donor].folders[0]}: has no tokenizer to take; name another model"
        )
    for name, one in found.items():
        if one is None and rows_of(models[name]) != lead.rows:
            raise MergeError(
                f"{models[name].folders[0]}: has no tokenizer, and {rows_of(models[name])} rows "
                f"where {lead.file.parent} has {lead.rows}; put its tokenizer beside it"
            )
    return {name: one or lead for name, one in found.items()}


def _require_one_way_to_cut(known: Mapping[str, Vocabulary]) -> None:
    first, *others = known.values()
    for other in others:
        ours, theirs = cut(first), cut(other)
        for key in ours:
            if ours[key] != theirs[key]:
                raise MergeError(
                    f"{first.file} and {other.file}: {key} differs: {_short(ours[key])} and "
                    f"{_short(theirs[key])}; such tokenizers cut text differently, and no choice "
                    "of rows makes up for it"
                )


def _lead(known: Mapping[str, Vocabulary], merge: Merge, donor: str) -> str:
    """The model whose tokenizer makes the pieces of all: the donor if it can."""
    order = [donor] if merge.tokenizer_from is not None else [donor, *known]
    for name in order:
        if not any(missing_in(known[name], one) for one in known.values()):
            return name
    other = next(name for name, one in known.items() if missing_in(known[donor], one))
    lacks = missing_in(known[other], known[donor])
    raise MergeError(
        f"{known[donor].file.parent} and {known[other].file.parent}: no union: "
        f"{_some(missing_in(known[donor], known[other]))} of the second can't be made by the first's tokenizer"
        + (
            f", nor {_some(lacks)} of the first by the second's"
            if lacks
            else ", which tokenizer_from names"
        )
        + "; a union needs a tokenizer that makes the pieces of all; "
        "set tokenizer_source to the model whose tokenizer is meant"
    )


def _new_tokens(
    known: Mapping[str, Vocabulary], lead: str, wanted: VocabularyConfig
) -> list[Mapping[str, Any]]:
    """What is added to the lead's tokens: those of the others, and those that the config lists."""
    ids = known[lead].ids
    new: dict[str, Mapping[str, Any]] = {}
    for one in known.values() if wanted.union else ():
        for token, entry in one.added.items():
            if token not in ids:
                new.setdefault(token, entry)
            elif token not in known[lead].added:
                raise MergeError(
                    f"{one.file}: {token!r} is an added token, and in {known[lead].file} one that "
                    f"text is cut into like any other; add it to the tokenizer of {lead} too"
                )
    for row in wanted.rows:
        if row.token not in ids:
            new.setdefault(row.token, _plain(row.token))
    return list(new.values())


def _plain(token: str) -> dict[str, Any]:
    """An added token as tokenizers makes it of a text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"id": -1, "content": token, **flags, "normalized": True}


def _size(vocabulary: Vocabulary, multiple: int | None) -> int:
    if multiple is None:
        return max(vocabulary.end, vocabulary.rows)
    return -(-vocabulary.end // multiple) * multiple


def _own(mine: Vocabulary, merged: Vocabulary) -> Array:
    own = np.full(merged.rows, -1, np.int64)
    padding = np.ones(merged.rows, bool)
    places = np.fromiter(merged.ids.values(), np.int64, len(merged.ids))
    rows = np.fromiter((mine.ids.get(one, -1) for one in merged.ids), np.int64, len(places))
    padding[places] = False
    own[places] = np.where(rows < mine.rows, rows, -1)
    here = np.arange(min(mine.rows, merged.rows))
    free = padding[: len(here)] & ~np.isin(here, list(mine.ids.values()))
    own[here[free]] = here[free]
    return own


def _chosen(
    rows: Sequence[TokenRow],
    vocabulary: Vocabulary,
    known: Mapping[str, Vocabulary],
    own: Mapping[str, Array],
) -> dict[int, Source]:
    """The rows that the config names; with force also for the models that have the token."""
    found: dict[int, Source] = {}
    for one in rows:
        place = vocabulary.ids[one.token]
        found[place] = () if one.model is None else ((one.model, _row(one, known[one.model])),)
    for one in rows:
        for mine in own.values() if one.force else ():
            mine[vocabulary.ids[one.token]] = -1
    return found


def _row(one: TokenRow, vocabulary: Vocabulary) -> int:
    token = one.token if one.row is None else one.row
    row = token if isinstance(token, int) else vocabulary.ids.get(token, -1)
    if not 0 <= row < vocabulary.rows:
        what = f"no row {row}" if isinstance(token, int) else f"no row for {token!r}"
        raise MergeError(
            f"tokenizer.tokens.{one.token}: {vocabulary.file.parent} has {what} "
            f"(it has {vocabulary.rows} rows)"
        )
    return row


def _defaults(
    vocabulary: Vocabulary,
    own: Mapping[str, Array],
    base: str | None,
    chosen: Mapping[int, Source],
) -> dict[int, Source]:
    """For each row that a model lacks: the base's, else the mean of those that have it."""
    lacking = np.flatnonzero((np.stack(list(own.values())) < 0).any(axis=0))
    names = {place: token for token, place in vocabulary.ids.items()}
    found: dict[int, Source] = {}
    for place in map(int, lacking):
        having = {name: int(mine[place]) for name, mine in own.items() if mine[place] >= 0}
        if base in having:
            having = {base: having[base]}
        if not having and place in names and place not in chosen:
            token = names[place]
            raise MergeError(
                f"{vocabulary.file}: no model has a row for {token!r} (id {place}); say where it "
                f"comes from: tokenizer: {{tokens: {{{token!r}: {{source: {{kind: zero}}}}}}}}"
            )
        found[place] = tuple(having.items())
    return found


_LISTED = 1000


def described(alignment: Alignment) -> dict[str, dict[str, Any]]:
    """The choice in a few words, in the form of what preflight decided."""
    after = alignment.vocabulary
    sizes = {
        str(one.file.parent): f"{len(one.ids)} tokens in {one.rows} rows"
        for one in alignment.known.values()
    }
    taken = f"{alignment.lead}, now {len(after.ids)} tokens in {after.rows} rows"
    found: dict[str, dict[str, Any]] = {"vocabulary": {**sizes, "taken_from": taken}}
    for name, one in alignment.known.items():
        lost = [token for token in one.ids if token not in after.ids]
        if lost:
            found[f"tokens of {name} left out"] = {
                "tokens": lost[:_LISTED],
                "taken_from": f"{len(lost)}: {_some(lost)}",
            }
    return found


def recorded(alignment: Alignment) -> dict[str, Any]:
    """For merge.json: what was added, and for each model the tokens whose rows came from elsewhere.

    Of a model that lacks thousands the first thousand are listed.
    """
    names = {place: token for token, place in alignment.vocabulary.ids.items()}
    filled: dict[str, dict[str, Any]] = {}
    for model, own in alignment.own.items():
        groups: dict[str, list[str | int]] = {}
        for place in map(int, np.flatnonzero(own < 0)):
            source = alignment.sources[place]
            words = " and ".join(f"row {row} of {name}" for name, row in source) or "zeros"
            if len(source) > 1:
                words = f"the mean of {words}"
            groups.setdefault(words, []).append(names.get(place, place))
        listed = dict(list(groups.items())[:_LISTED])
        filled[model] = {"rows": int((own < 0).sum()), "from": listed}
    return {
        "tokenizer": alignment.lead,
        "tokens": len(alignment.vocabulary.ids),
        "rows": alignment.vocabulary.rows,
        "added": list(alignment.new),
        "filled": filled,
    }


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(one if one.startswith("the merge") else repr(one) for one in found[:3]) + more


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
