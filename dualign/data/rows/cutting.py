"""A document of raw text -> pieces that fit into a row, cut where its author would.

Tokens are counted by the tokenizer, never guessed from characters. A piece is a slice of the text,
so the pieces of a document joined are the document.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dualign.data.request import DataRequest

_HEADING = re.compile(r"\n(?=#{1,6} )")
_BREAKS = (
    re.compile(r"\n(?:[ \t]*\n)+"),  # blank lines
    re.compile(
        "[.!?\u2026][\"'\u201d\u2019)\\]\u00bb]*(?=[ \t])"
        "|[.!?\u2026][\"'\u201d\u2019)\\]\u00bb]*[ \t]*\n"
        "|[\u3002\uff01\uff1f][\"'\u201d\u2019\u300d\u300f\uff09]*"
    ),  # the end of a sentence; the blank after it begins the next one, as most tokenizers have it
    re.compile(r"\n"),
)
_WORD = re.compile(r"\S(?=\s)")
_JOINERS = frozenset("\u200d\ufe0e\ufe0f")
_AROUND = 64
"""Characters before and after a stretch in which a break of it may begin or be recognized by."""
_LEAST_PART = 4
"""A break is taken if the piece before it has at least one part in so many of the tokens that fit."""
_WINDOW = 1 << 18
_CHARACTERS_OF_A_TOKEN = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutter:
    """Cuts documents into pieces of at most `max_tokens` tokens; None: not at all.

    `token_ends` returns where each token of a text ends, in characters.
    """

    token_ends: Callable[[str], Sequence[int]]
    max_tokens: int | None

    def pieces(self, parts: Iterable[str], *, headings: bool) -> Iterator[str]:
        """Yield the pieces of a document whose text comes in parts. `headings`: it is Markdown, so
        it is cut at headings first.

        Then at blank lines, else at the end of a sentence, of a line, of a word, and within a word
        only if no piece could hold it; never within a character and the marks that belong to it.
        """
        if self.max_tokens is None:
            yield "".join(parts)
            return
        window = max(_WINDOW, self.max_tokens * _CHARACTERS_OF_A_TOKEN)
        text = ""
        for part in parts:
            text += part
            if len(text) >= window:
                # Of the last piece the end isn't known yet.
                *whole, text = self._cut(text, self.max_tokens, headings)
                yield from whole
        yield from self._cut(text, self.max_tokens, headings)

    def _cut(self, text: str, limit: int, headings: bool) -> list[str]:
        ends, pieces, start = self.token_ends(text), [], 0
        while start < len(text):
            first = bisect_right(ends, start)
            stop = len(text)
            if len(ends) - first > limit:
                stop = _break(text, start, max(ends[first + limit - 1], start + 1), headings)
            # A piece alone may have a token more than in its place.
            while len(own := self.token_ends(text[start:stop])) > limit and stop - start > 1:
                edge = min(start + own[limit - 1], stop - 1)
                stop = _break(text, start, max(edge, start + 1), headings)
            pieces.append(text[start:stop])
            start = stop
        return pieces


def cutter_for(request: DataRequest) -> Cutter:
    """Return what cuts documents into rows of a recipe's `max_tokens`, with room for the tokens around
    a document; wrapped packing cuts by itself.
    """
    tokenizer, data = request.tokenizer, request.data

    def token_ends(text: str) -> list[int]:
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return [stop for _, stop in encoding.offsets]

    around = len(token_ends("".join(request.template.document_marks)))
    room = None if data.packing == "wrapped" else max(1, data.max_tokens - around)
    return Cutter(token_ends=token_ends, max_tokens=room)


def _break(text: str, start: int, edge: int, headings: bool) -> int:
    """Return where the piece that begins at `start` ends: after `start`, at `edge` at the latest."""
    least = start + max(1, (edge - start) // _LEAST_PART)
    for pattern in (_HEADING, *_BREAKS) if headings else _BREAKS:
        if stop := _last(pattern, text, least, edge):
            return stop
    return _last(_WORD, text, start + 1, edge) or _whole_characters(text, start, edge)


def _last(pattern: re.Pattern[str], text: str, least: int, edge: int) -> int:
    """Return the end of the last match that ends in `least`..`edge`; 0 if there is none."""
    window = pattern.finditer(text, max(0, least - _AROUND), edge + _AROUND)
    return max((match.end() for match in window if least <= match.end() <= edge), default=0)


def _whole_characters(text: str, start: int, edge: int) -> int:
    """Return the last place up to `edge` at which no mark is taken from its character."""
    for stop in range(edge, start, -1):
        following, last = text[stop : stop + 1], text[stop - 1]
        if not following or not (
            unicodedata.combining(following) or following in _JOINERS or last == "\u200d"
        ):
            return stop
    return edge
