"""A model's vocabulary: its tokens with their ids, how it cuts text, and how many rows it has.

Read from tokenizer.json alone. `pieces` are the tokens that the tokenizer's model makes by itself
(for BPE, by its merges); added tokens are looked for in the text before that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import Weights, embedding_name, read_json, require_inside
from dualign.checkpoints.shards import nearest_file, tokenizer_files
from dualign.errors import MergeError
from dualign.hashing import sha256
from dualign.rundir import write_json

TOKENIZER = "tokenizer.json"
_BY_PLACE = ("vocab", "merges", "unk_id")
_RAW = ("vocab.json", "merges.txt", "tokenizer.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The tokens of one model."""

    file: Path
    """its tokenizer.json"""
    content: Mapping[str, Any]
    """what is in it"""
    pieces: Mapping[str, Any]
    """each piece of the tokenizer's model: its id, for Unigram its score"""
    added: Mapping[str, Mapping[str, Any]]
    """each added token: its id and its flags"""
    ids: Mapping[str, int]
    """all of them"""
    rows: int
    """of the embedding; more than there are tokens when it is padded"""

    def slim(self) -> "Vocabulary":
        """Without what takes much memory, once the tokens are settled."""
        return replace(self, content={}, pieces={})

    @property
    def end(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1

    def with_added(self, tokens: Sequence[Mapping[str, Any]], rows: int) -> "Vocabulary":
        """The vocabulary with more added tokens, which get the next ids, and another size."""
        start = _next_id(self.pieces, self.added)
        new = {one["content"]: {**one, "id": start + i} for i, one in enumerate(tokens)}
        taken = {one["id"] for one in new.values()} & set(self.ids.values())
        if taken:
            raise MergeError(
                f"{self.file}: its ids have gaps, and a token that is added would get the id "
                f"{min(taken)}, which another has; tokens can't be added to it"
            )
        return replace(
            self,
            added={**self.added, **new},
            ids={**self.ids, **{token: one["id"] for token, one in new.items()}},
            rows=rows,
        )


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer of a model, as it is on disk."""

    folder: Path
    """the model's"""
    file: Path | None
    """its tokenizer.json, if it has one"""
    hashes: Mapping[str, str]
    """of tokenizer.json, or of the files that there are instead; empty: it has none"""
    read: dict[str, Mapping[str, Any]]
    """what was read already, by hash"""

    def content(self) -> Mapping[str, Any]:
        """What is in tokenizer.json; models with the same file share it."""
        assert self.file is not None
        digest = self.hashes[TOKENIZER]
        if digest not in self.read:
            self.read[digest] = read_json(self.file)
        return self.read[digest]


def find_tokenizers(models: Sequence[Weights]) -> list[Tokenizer]:
    """The tokenizer of each model; nothing is read but hashes.

    Raises:
        CheckpointError: a file that will be copied is a link out of its folder.
    """
    read: dict[str, Mapping[str, Any]] = {}
    found: list[Tokenizer] = []
    for weights in models:
        every = tokenizer_files(weights)
        for one in [*every, *nearest_file(weights, "generation_config.json")]:
            require_inside(one, one.parent)
        files = {file.name: file for file in every}
        names = [TOKENIZER] if TOKENIZER in files else [name for name in _RAW if name in files]
        hashes = {name: sha256(files[name]) for name in names}
        found.append(Tokenizer(weights.folders[0], files.get(TOKENIZER), hashes, read))
    return found


def read_vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary | None:
    """The vocabulary of a model with so many rows; None when it has no tokenizer.

    Raises:
        MergeError: it has one, but no tokenizer.json, or its parts don't make sense.
    """
    if tokenizer.file is not None:
        found = vocabulary_in(tokenizer.file, tokenizer.content(), rows)
        _require_real_ids(found)
        return found
    if not tokenizer.hashes:
        return None
    raise MergeError(
        f"{tokenizer.folder}: has no {TOKENIZER}, so its tokens can't be told apart; load its "
        "tokenizer with transformers and save it with save_pretrained"
    )


def vocabulary_in(file: Path, content: Mapping[str, Any], rows: int = 0) -> Vocabulary:
    """The vocabulary in a tokenizer.json."""
    try:
        pieces, ids = _pieces(content["model"])
        added = {one["content"]: one for one in content.get("added_tokens") or ()}
        ids |= {token: one["id"] for token, one in added.items()}
        if not all(type(place) is int and place >= 0 for place in ids.values()):
            raise ValueError("an id isn't a whole number")
        if not all(isinstance(one, str | list) for one in content["model"].get("merges") or []):
            raise ValueError("a merge isn't two pieces")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MergeError(f"{file}: isn't a tokenizer that can be read ({error!r})") from None
    return Vocabulary(file=file, content=content, pieces=pieces, added=added, ids=ids, rows=rows)


def _require_real_ids(vocabulary: Vocabulary) -> None:
    """Refuse ids of added tokens that aren't those which the tokenizers library gives them."""
    _, places = _pieces(vocabulary.content["model"])
    before: dict[str, Mapping[str, Any]] = {}
    for token, one in vocabulary.added.items():
        real = places.get(token, _next_id(places, before))
        before[token] = {"id": real}
        if one["id"] != real:
            raise MergeError(
                f"{vocabulary.file}: the added token {token!r} has the id {one['id']}, and gets "
                f"{real} when the file is loaded; save the tokenizer again with save_pretrained"
            )


def _by_id(vocabulary: Vocabulary) -> bool:
    return isinstance(vocabulary.content["model"]["vocab"], dict)


def _next_id(pieces: Mapping[str, Any], added: Mapping[str, Mapping[str, Any]]) -> int:
    """The id that the tokenizers library gives to a token that is added next."""
    highest = max((int(one["id"]) for one in added.values()), default=-1)
    return max(highest + 1, len(pieces))


def rows_of(weights: Weights) -> int:
    """The rows of the input embedding.

    Raises:
        MergeError: there isn't one, or it can't be told which it is.
    """
    name = embedding_name(weights.entries)
    if name is None:
        raise MergeError(
            f"{weights.folders[0]}: its embedding isn't known by name, so rows can't go by token"
        )
    return weights.entries[name].shape[0]


def _pieces(model: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, int]]:
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return vocab, dict(vocab)
    return dict(vocab), {token: place for place, (token, _) in enumerate(vocab)}


def merges(vocabulary: Vocabulary) -> list[str]:
    """The merges of BPE, in order; older files write each as one text."""
    found = vocabulary.content["model"].get("merges") or ()
    return [one if isinstance(one, str) else " ".join(map(str, one)) for one in found]


def cut(vocabulary: Vocabulary) -> dict[str, Any]:
    """What besides the pieces decides how text is cut."""
    model = vocabulary.content["model"]
    settings = {key: one for key, one in model.items() if key not in _BY_PLACE}
    # What is left out, null and "" mean the same in these, and versions differ in which they write.
    settings = {key: one for key, one in settings.items() if one not in (None, "", False)}
    return {
        "the settings of the tokenizer's model": settings,
        "the normalizer": vocabulary.content.get("normalizer"),
        "the pre-tokenizer": vocabulary.content.get("pre_tokenizer"),
    }


def first_difference(first: Tokenizer, other: Tokenizer) -> tuple[str, Any, Any] | None:
    """The first token, or part of the tokenizer, in which two models differ, and what each has."""
    if first.hashes == other.hashes or not (first.hashes and other.hashes):
        return None
    ours, theirs = (
        _comparable(vocabulary_in(one.file, one.content())) if one.file else one.hashes
        for one in (first, other)
    )
    different = (key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key))
    return next(((key, ours.get(key), theirs.get(key)) for key in different), None)


def _comparable(vocabulary: Vocabulary) -> dict[str, Any]:
    scored = not _by_id(vocabulary)
    return {
        **vocabulary.ids,
        **cut(vocabulary),
        "the list of merges": merges(vocabulary),
        "the scores": list(vocabulary.pieces.values()) if scored else None,
    }


def missing_in(whole: Vocabulary, part: Vocabulary) -> list[str]:
    """What of `part`'s model isn't in that of `whole`: pieces, else merges out of order; or nothing.

    With nothing missing, `whole` makes every piece that `part` makes.
    """
    ours, theirs = (one.content["model"] for one in (whole, part))
    if ours["vocab"] == theirs["vocab"] and ours.get("merges") == theirs.get("merges"):
        return []
    scored = not _by_id(whole)
    pieces = [
        token
        for token, value in part.pieces.items()
        if token not in whole.ids or (scored and whole.pieces.get(token) != value)
    ]
    return pieces or _out_of_order(merges(whole), merges(part))


def _out_of_order(whole: Sequence[str], part: Sequence[str]) -> list[str]:
    """The first merge that keeps `part` from being a subsequence of `whole`."""
    left = iter(whole)
    return next(([f"the merge {one!r}"] for one in part if one not in left), [])


def write_tokenizer(work: Path, vocabulary: Vocabulary, new: Sequence[str]) -> None:
    """Bring the copied tokenizer files of a folder up to date with the tokens that are new."""
    if not new:
        return
    content = read_json(work / TOKENIZER)
    entries = [*(content.get("added_tokens") or ()), *(vocabulary.added[token] for token in new)]
    write_json(work / TOKENIZER, {**content, "added_tokens": entries})
    settings, listed = work / "tokenizer_config.json", work / "added_tokens.json"
    if settings.is_file():
        config = read_json(settings)
        if "added_tokens_decoder" in config:  # as transformers wrote it before release 5
            config["added_tokens_decoder"] |= {
                str(vocabulary.ids[token]): _flags(vocabulary.added[token]) for token in new
            }
            write_json(settings, config)
    if listed.is_file():
        write_json(listed, read_json(listed) | {token: vocabulary.ids[token] for token in new})


def _flags(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}
