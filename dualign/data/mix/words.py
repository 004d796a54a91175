"""Texts as words, and words as numbers: what deduplication and decontamination compare."""

import re
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Scripts that are written without spaces: a character is a word. Kana, Han, Hangul.
_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# 3+4 isn't 3-4, nor one emoji another; other punctuation doesn't count.
_SIGNS = r"-+*/=<>^%&|~$\u20a0-\u20cf\u2190-\u2bff\U0001f000-\U0001faff"
_WORD = re.compile(rf"[{_ALONE}{_SIGNS}]|[^\W_{_ALONE}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """The words, numbers and signs of a text, without case and punctuation."""
    return _WORD.findall(text.casefold())


def word_hashes(text: str) -> Hashes:
    """A number for each word; the same in every process and on every machine."""
    return np.array([_hashed(word) for word in words_of(text)], dtype=np.uint64)


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """A number for each n words in a row; none for a text of fewer."""
    count = len(hashes) - n + 1
    if count < 1 or n < 1:
        return np.empty(0, dtype=np.uint64)
    made = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        made = made * _BASE + hashes[place : place + count]
    return made ^ (made >> np.uint64(29))


def shingles(hashes: Hashes, n: int) -> Hashes:
    """The n-grams of a text; of a shorter one, the whole."""
    return ngram_hashes(hashes, min(n, len(hashes)))


@lru_cache(maxsize=1 << 17)
def _hashed(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode())
