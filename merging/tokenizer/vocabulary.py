"""A model's vocabulary: its tokens with their ids, how it splits text, and its number of rows.

Read from tokenizer.json alone. `pieces` are the tokens that the tokenizer's model makes by itself
(for BPE, by its merges); added tokens are looked for in the text before that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Weights, embedding_name, read_json, require_inside
from dualign.checkpoints.shards import nearest_file, tokenizer_files
from dualign.errors import MergeError
from dualign.hashing import sha256
from dualign.rundir import write_json

TOKENIZER = "tokenizer.json"
_IDS_AND_MERGES = ("vocab", "merges", "unk_id")
_SLOW_FILES = ("vocab.json", "merges.txt", "tokenizer.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The tokens of one model."""

    file: Path
    """its tokenizer.json"""
    content: Mapping[str, Any]
    """tokenizer.json, parsed"""
    pieces: Mapping[str, Any]
    """each piece of the tokenizer's model: its id, for Unigram its score"""
    added: Mapping[str, Mapping[str, Any]]
    """each added token: its id and its flags"""
    ids: Mapping[str, int]
    """pieces and added tokens"""
    rows: int
    """of the embedding; more than tokens if it is padded"""

    def without_content(self) -> "Vocabulary":
        """Drop the parts that take much memory."""
        return replace(self, content={}, pieces={})

    @property
    def min_rows(self) -> int:
        """The fewest rows that hold every id: the largest id + 1."""
        return max(self.ids.values(), default=-1) + 1

    def with_added(self, tokens: Sequence[Mapping[str, Any]], rows: int) -> "Vocabulary":
        """Return the vocabulary with more added tokens, which get the next ids, and `rows` rows."""
        start = _next_id(self.pieces, self.added)
        new = {token["content"]: {**token, "id": start + i} for i, token in enumerate(tokens)}
        taken = {token["id"] for token in new.values()} & set(self.ids.values())
        if taken:
            raise MergeError(
                f"{self.file}: its ids have gaps, and a token that is added would get the id "
                f"{min(taken)}, which another has; tokens can't be added to it"
            )
        return replace(
            self,
            added={**self.added, **new},
            ids={**self.ids, **{name: token["id"] for name, token in new.items()}},
            rows=rows,
        )


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The tokenizer of a model on disk."""

    folder: Path
    """the model's"""
    file: Path | None
    """its tokenizer.json, if it has one"""
    hashes: Mapping[str, str]
    """of tokenizer.json, or else of the files of a slow tokenizer; empty: it has none"""
    content: Callable[[], Mapping[str, Any]]
    """parse tokenizer.json, once for all models with the same bytes; {} without one"""


def find_tokenizers(models: Sequence[Weights]) -> list[TokenizerFiles]:
    """Find and hash the tokenizer of each model, without parsing it.

    Raises:
        CheckpointError: a file that will be copied is a link out of its folder.
    """
    contents: dict[str, Callable[[], Mapping[str, Any]]] = {}
    tokenizers: list[TokenizerFiles] = []
    for weights in models:
        copied = tokenizer_files(weights)
        for file in [*copied, *nearest_file(weights, "generation_config.json")]:
            require_inside(file, file.parent)
        files = {file.name: file for file in copied}
        names = [TOKENIZER] if TOKENIZER in files else [n for n in _SLOW_FILES if n in files]
        hashes = {name: sha256(files[name]) for name in names}
        content: Callable[[], Mapping[str, Any]] = dict
        if TOKENIZER in files:
            parse = cache(partial(read_json, files[TOKENIZER]))
            content = contents.setdefault(hashes[TOKENIZER], parse)
        tokenizers.append(TokenizerFiles(weights.folders[0], files.get(TOKENIZER), hashes, content))
    return tokenizers


def read_vocabulary(tokenizer: TokenizerFiles, rows: int) -> Vocabulary | None:
    """Return the vocabulary of a model with `rows` rows; None if it has no tokenizer.

    Raises:
        MergeError: it has a tokenizer but no tokenizer.json, or one that contradicts itself.
    """
    if tokenizer.file is not None:
        vocabulary = _parse_vocabulary(tokenizer.file, tokenizer.content(), rows)
        _require_loaded_ids(vocabulary)
        return vocabulary
    if not tokenizer.hashes:
        return None
    raise MergeError(
        f"{tokenizer.folder}: has no {TOKENIZER}, so its tokens can't be told apart; load its "
        "tokenizer with transformers and save it with save_pretrained"
    )


def _parse_vocabulary(file: Path, content: Mapping[str, Any], rows: int = 0) -> Vocabulary:
    """Return the vocabulary in the content of a tokenizer.json.

    Raises:
        MergeError: it isn't the content of a tokenizer.json.
    """
    try:
        pieces, ids = _pieces(content["model"])
        added = {token["content"]: token for token in content.get("added_tokens") or ()}
        ids |= {name: token["id"] for name, token in added.items()}
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids.values()):
            raise ValueError("an id isn't a whole number")
        if not all(isinstance(pair, str | list) for pair in content["model"].get("merges") or []):
            raise ValueError("a merge isn't two pieces")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MergeError(f"{file}: isn't a tokenizer that can be read ({error!r})") from None
    return Vocabulary(file=file, content=content, pieces=pieces, added=added, ids=ids, rows=rows)


def _require_loaded_ids(vocabulary: Vocabulary) -> None:
    """Refuse added tokens that get other ids when the tokenizers library loads the file."""
    _, piece_ids = _pieces(vocabulary.content["model"])
    before: dict[str, Mapping[str, Any]] = {}
    for name, token in vocabulary.added.items():
        loaded = piece_ids.get(name, _next_id(piece_ids, before))
        before[name] = {"id": loaded}
        if token["id"] != loaded:
            raise MergeError(
                f"{vocabulary.file}: the added token {name!r} has the id {token['id']}, and gets "
                f"{loaded} when the file is loaded; save the tokenizer again with save_pretrained"
            )


def _has_scores(vocabulary: Vocabulary) -> bool:
    return not isinstance(vocabulary.content["model"]["vocab"], dict)


def _next_id(pieces: Mapping[str, Any], added: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the id that the tokenizers library gives to the next added token."""
    highest = max((int(token["id"]) for token in added.values()), default=-1)
    return max(highest + 1, len(pieces))


def embedding_rows(weights: Weights) -> int:
    """Return the number of rows of the input embedding.

    Raises:
        MergeError: no tensor, or no single tensor, has the name of an embedding.
    """
    name = embedding_name(weights.entries)
    if name is None:
        raise MergeError(
            f"{weights.folders[0]}: its embedding isn't known by name, so rows can't go by token"
        )
    return weights.entries[name].shape[0]


def _pieces(model: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, int]]:
    """Return (piece -> its id or score, piece -> id)."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return vocab, dict(vocab)
    return dict(vocab), {token: i for i, (token, _) in enumerate(vocab)}


def _merges(vocabulary: Vocabulary) -> list[str]:
    """Return the merges of BPE, in order; older files write each as one text."""
    merges = vocabulary.content["model"].get("merges") or ()
    return [pair if isinstance(pair, str) else " ".join(map(str, pair)) for pair in merges]


def splitting(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what, besides the pieces, decides how text is split into tokens."""
    model = vocabulary.content["model"]
    settings = {key: value for key, value in model.items() if key not in _IDS_AND_MERGES}
    # A missing value, null and "" mean the same in these, and versions differ in which they write.
    settings = {key: value for key, value in settings.items() if value not in (None, "", False)}
    return {
        "the settings of the tokenizer's model": settings,
        "the normalizer": vocabulary.content.get("normalizer"),
        "the pre-tokenizer": vocabulary.content.get("pre_tokenizer"),
    }


def first_difference(first: TokenizerFiles, other: TokenizerFiles) -> tuple[str, Any, Any] | None:
    """Return the first token or setting in which two tokenizers differ, and both values."""
    if first.hashes == other.hashes or not (first.hashes and other.hashes):
        return None
    ours, theirs = (
        _comparable(_parse_vocabulary(tokenizer.file, tokenizer.content()))
        if tokenizer.file
        else tokenizer.hashes
        for tokenizer in (first, other)
    )
    different = (key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key))
    return next(((key, ours.get(key), theirs.get(key)) for key in different), None)


def _comparable(vocabulary: Vocabulary) -> dict[str, Any]:
    scored = _has_scores(vocabulary)
    return {
        **vocabulary.ids,
        **splitting(vocabulary),
        "the list of merges": _merges(vocabulary),
        "the scores": list(vocabulary.pieces.values()) if scored else None,
    }


def missing_pieces(whole: Vocabulary, part: Vocabulary) -> list[str]:
    """Return the pieces of `part` that `whole` can't make; else the first merge out of order.

    An empty list: `whole` makes every piece that `part` makes.
    """
    ours, theirs = (vocabulary.content["model"] for vocabulary in (whole, part))
    if ours["vocab"] == theirs["vocab"] and ours.get("merges") == theirs.get("merges"):
        return []
    scored = _has_scores(whole)
    pieces = [
        token
        for token, value in part.pieces.items()
        if token not in whole.ids or (scored and whole.pieces.get(token) != value)
    ]
    if pieces:
        return pieces
    # `in` on an iterator moves it on, so this asks whether one list is a subsequence of the other.
    remaining = iter(_merges(whole))
    return next(([f"the merge {pair!r}"] for pair in _merges(part) if pair not in remaining), [])


def write_tokenizer(work: Path, vocabulary: Vocabulary, added: Sequence[str]) -> None:
    """Add the new tokens to the tokenizer files that were copied into `work`."""
    if not added:
        return
    content = read_json(work / TOKENIZER)
    entries = [*(content.get("added_tokens") or ()), *(vocabulary.added[name] for name in added)]
    write_json(work / TOKENIZER, {**content, "added_tokens": entries})
    settings, listed = work / "tokenizer_config.json", work / "added_tokens.json"
    if settings.is_file():
        config = read_json(settings)
        if "added_tokens_decoder" in config:  # as transformers wrote it before release 5
            config["added_tokens_decoder"] |= {
                str(vocabulary.ids[name]): {
                    key: value for key, value in vocabulary.added[name].items() if key != "id"
                }
                for name in added
            }
            write_json(settings, config)
    if listed.is_file():
        write_json(listed, read_json(listed) | {name: vocabulary.ids[name] for name in added})
