"""New words of a recipe: which tokens a tokenizer gets, and from which pieces each begins.

Light: a recipe that has them is read without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dualign.errors import CheckpointError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class NewToken:
    """A word that becomes one token."""

    text: str
    """the word, as it stands in the rows"""
    description: str | None = None
    """its embedding begins as the mean of this text's pieces; absent: of the word's own"""
    special: bool = False
    """a control token, which is left out where text is decoded with skip_special_tokens"""
    single_word: bool | None = None
    """not inside of a longer word; absent: true of a word that begins and ends with a letter or digit"""

    def problems(self) -> list[tuple[str, str]]:
        issues = []
        for key, text in (("text", self.text), ("description", self.description)):
            if text is not None and not text.strip():
                issues.append((key, "expected text, found none"))
        if self.text.strip() and self.text != self.text.strip():
            issues.append(("text", f"starts or ends with white space: {self.text!r}; remove it"))
        return issues

    @property
    def stands_alone(self) -> bool:
        """Whether it is no token inside of a longer word."""
        if self.single_word is not None:
            return self.single_word
        return not self.special and self.text[0].isalnum() and self.text[-1].isalnum()


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRow:
    """A row of the embedding that a new token gets."""

    id: int
    text: str
    pieces: tuple[int, ...]
    """the tokens whose rows it begins as the mean of"""


def add_new_tokens(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[NewToken]
) -> tuple[NewRow, ...]:
    """Give a tokenizer new tokens, in their order; return their rows.

    They are matched in the text as it is, before the tokenizer normalizes it, and take no blanks
    around them.

    Raises:
        CheckpointError: one is a token already, has no pieces, or isn't read as one token.
    """
    from tokenizers import AddedToken

    pieces = [_pieces(tokenizer, token) for token in tokens]
    tokenizer.add_tokens(
        [
            AddedToken(
                token.text,
                single_word=token.stands_alone,
                normalized=False,
                special=token.special,
            )
            for token in tokens
        ]
    )
    rows = []
    for token, own in zip(tokens, pieces, strict=True):
        ids = _ids(tokenizer, token.text)
        if len(ids) != 1:
            raise CheckpointError(
                f"add_tokens: {token.text!r} is still read as {len(ids)} tokens by this tokenizer; "
                "choose another text"
            )
        rows.append(NewRow(id=ids[0], text=token.text, pieces=own))
    return tuple(rows)


def _occurrences(rows: "Dataset", ids: Sequence[int]) -> dict[int, int]:
    """Count tokens in prepared rows, by id."""
    counts = dict.fromkeys(ids, 0)
    for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        counted = table["input_ids"].combine_chunks().flatten().value_counts().to_pylist()
        numbers = {pair["values"]: pair["counts"] for pair in counted}
        counts = {token: count + numbers.get(token, 0) for token, count in counts.items()}
    return counts


def occurrence_notes(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[NewToken]
) -> list[str]:
    """Return how often the rows hold each new token, and a warning for each that they never hold."""
    if not tokens:
        return []
    ids: list[int] = tokenizer.convert_tokens_to_ids([token.text for token in tokens])
    counts = _occurrences(rows, ids)
    named = [(token.text, counts[number]) for token, number in zip(tokens, ids, strict=True)]
    listed = ", ".join(f"{text!r} {count:,} times" for text, count in named)
    unused = [f"warning: add_tokens: {never_used(text)}" for text, count in named if not count]
    return [f"add_tokens, in the training rows: {listed}", *unused]


def never_used(text: str) -> str:
    """Return what is wrong with a new token that no row holds."""
    return f"no row holds {text!r} as a token, so its embedding stays as it begins"


def _pieces(tokenizer: "PreTrainedTokenizerBase", token: NewToken) -> tuple[int, ...]:
    """Return the tokens that its row begins with.

    Raises:
        CheckpointError: it is a token already, or the tokenizer has no pieces for it.
    """
    ids = _ids(tokenizer, token.text)
    known = tokenizer.get_vocab().get(token.text, ids[0] if len(ids) == 1 else None)
    unknown = tokenizer.unk_token_id
    if known is not None and known != unknown:
        raise CheckpointError(
            f"add_tokens: {token.text!r} is a token of this model already (id {known}), and is "
            "trained as it is; remove it from the list"
        )
    if token.description is not None:
        ids = _ids(tokenizer, token.description)
    if not ids or unknown in ids:
        raise CheckpointError(
            f"add_tokens: the tokenizer has no pieces for {token.description or token.text!r}, so "
            "its embedding has no start; give it a description in words that it has"
        )
    return tuple(ids)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
