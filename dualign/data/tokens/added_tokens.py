"""Where spans are among the tokens, told by the added tokens between them, without the place of every
token.

Added tokens (`<|im_start|>`, `<|im_end|>`) cut a text before anything else happens to it. A span
ends with one. It starts a few tokens after one, and those few are known: the end of a generation
prompt, tokenised alone, must be what the row has there. That is half of what a tokenizer's offsets
cost. Where any of it doesn't hold, the answer is None, and offsets decide.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dualign.data.text.spans import Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """The added tokens of a tokenizer, and the ids of the prompt ends that were met."""

    tokenizer: "PreTrainedTokenizerBase"
    ids: Mapping[str, int]
    known: frozenset[int]
    """the same ids"""
    pattern: re.Pattern[str]
    ends: dict[str, list[int]] = field(default_factory=dict)

    def labelled(self, text: str, spans: Sequence[Span], ids: list[int]) -> list[Span] | None:
        """(first, last) tokens of each span; None where that can't be told."""
        met = list(self.pattern.finditer(text))
        places = _places(ids, self.known)
        if [ids[at] for at in places] != [self.ids[one.group()] for one in met]:
            return None
        stops = {one.end(): place for one, place in zip(met, places, strict=True)}
        found = list(self._found(text, spans, ids, stops))
        return found if len(found) == len(spans) else None

    def _found(
        self, text: str, spans: Sequence[Span], ids: list[int], stops: Mapping[int, int]
    ) -> Iterator[Span]:
        for start, stop in spans:
            before = max((end for end in stops if end <= start), default=None)
            if before is None or stop not in stops:
                return
            prompt_end = self._alone(text[before:start])
            first = stops[before] + 1 + len(prompt_end)
            if ids[stops[before] + 1 : first] != prompt_end:
                return
            yield first, stops[stop] + 1

    def _alone(self, text: str) -> list[int]:
        if text not in self.ends:
            encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
            self.ends[text] = encoding.ids
        return self.ends[text]


def _places(ids: list[int], known: frozenset[int]) -> list[int]:
    """Where tokens of `known` are. A row has few kinds of them: looking for each is quicker than
    looking at every token.
    """
    places = []
    for token in known.intersection(ids):
        at = -1
        for _ in range(ids.count(token)):
            at = ids.index(token, at + 1)
            places.append(at)
    return sorted(places)


def landmarks(tokenizer: "PreTrainedTokenizerBase") -> Landmarks | None:
    """The landmarks of a tokenizer; None if its added tokens take in what is beside them."""
    added = tokenizer.added_tokens_decoder
    if not added or any(one.lstrip or one.rstrip or one.single_word for one in added.values()):
        return None
    ids = {one.content: number for number, one in added.items()}
    longest_first = sorted(ids, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(content) for content in longest_first))
    known = frozenset(ids.values())
    return Landmarks(tokenizer=tokenizer, ids=ids, known=known, pattern=pattern)
