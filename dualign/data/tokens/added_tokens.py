"""Find spans among tokens by the added tokens between them, without the offsets of every token.

Added tokens (`<|im_start|>`, `<|im_end|>`) cut a text before anything else happens to it. A span
ends with one. It starts a few tokens after one, and those few can be checked: the end of a
generation prompt, tokenized alone, must be what the row has there. That takes half the time of a
tokenizer's offsets. Where any of it doesn't hold, the answer is None, and offsets decide.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dualign.data.text.spans import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AddedTokenAligner:
    """The added tokens of a tokenizer, with a cache of the tokenized ends of prompts."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = tokenizer.added_tokens_decoder
        self._tokenizer = tokenizer
        self._id_of = {token.content: token_id for token_id, token in added.items()}
        self._ids = frozenset(added)
        longest_first = sorted(self._id_of, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._suffix_ids: dict[str, list[int]] = {}

    def token_spans(self, text: str, spans: Sequence[Span], ids: list[int]) -> list[Span] | None:
        """Return the (first, stop) tokens of each (start, stop) characters; None if that isn't
        certain.

        `ids` are the tokens of `text`.
        """
        matches = list(self._pattern.finditer(text))
        places = _places(ids, self._ids)
        if [ids[place] for place in places] != [self._id_of[match.group()] for match in matches]:
            return None
        place_of_end = {match.end(): place for match, place in zip(matches, places, strict=True)}
        aligned = list(self._aligned(text, spans, ids, place_of_end))
        return aligned if len(aligned) == len(spans) else None

    def _aligned(
        self, text: str, spans: Sequence[Span], ids: list[int], place_of_end: Mapping[int, int]
    ) -> Iterator[Span]:
        """Yield the tokens of spans up to the first that isn't certain.

        `place_of_end`: where an added token ends in the text -> its place among the tokens.
        """
        for start, stop in spans:
            before = max((end for end in place_of_end if end <= start), default=None)
            if before is None or stop not in place_of_end:
                return
            prompt_suffix = self._tokenize(text[before:start])
            first = place_of_end[before] + 1 + len(prompt_suffix)
            if ids[place_of_end[before] + 1 : first] != prompt_suffix:
                return
            yield first, place_of_end[stop] + 1

    def _tokenize(self, suffix: str) -> list[int]:
        if suffix not in self._suffix_ids:
            encoding = self._tokenizer.backend_tokenizer.encode(suffix, add_special_tokens=False)
            self._suffix_ids[suffix] = encoding.ids
        return self._suffix_ids[suffix]


def _places(ids: list[int], wanted: frozenset[int]) -> list[int]:
    """Return where tokens of `wanted` are. A row has few kinds of them: looking for each is quicker
    than looking at every token.
    """
    places = []
    for token in wanted.intersection(ids):
        place = -1
        for _ in range(ids.count(token)):
            place = ids.index(token, place + 1)
            places.append(place)
    return sorted(places)


def added_token_aligner(tokenizer: "PreTrainedTokenizerBase") -> AddedTokenAligner | None:
    """Return the aligner of a tokenizer; None if its added tokens absorb the text around them.

    A token that is none inside of longer words may be among them: in a row with such a word the
    tokens aren't those of the text, and offsets decide.
    """
    added = tokenizer.added_tokens_decoder.values()
    if not added or any(token.lstrip or token.rstrip for token in added):
        return None
    return AddedTokenAligner(tokenizer)
