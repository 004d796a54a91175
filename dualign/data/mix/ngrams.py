"""Words and word n-grams as hashes, which deduplication and decontamination compare."""

import re
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Of polynomial hashes: each value is multiplied by it before the next is added."""

# Scripts that are written without spaces: a character is a word. Kana, Han, Hangul.
_SINGLE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# 3+4 isn't 3-4, nor one emoji another; other punctuation doesn't count.
_SIGNS = r"-+*/=<>^%&|~$\u20a0-\u20cf\u2190-\u2bff\U0001f000-\U0001faff"
_WORD = re.compile(rf"[{_SINGLE}{_SIGNS}]|[^\W_{_SINGLE}]+")


def words_of(text: str) -> list[str]:
    """Return the words, numbers and signs of a text, without case and punctuation."""
    return _WORD.findall(text.casefold())


def word_hashes(text: str) -> Hashes:
    """Return a hash for each word; the same in every process and on every machine."""
    return np.array([_word_hash(word) for word in words_of(text)], dtype=np.uint64)


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """Return a hash for each n consecutive words; none for a text of fewer."""
    count = len(hashes) - n + 1
    if count < 1 or n < 1:
        return np.empty(0, dtype=np.uint64)
    ngrams = np.zeros(count, dtype=np.uint64)
    for start in range(n):
        ngrams = ngrams * HASH_BASE + hashes[start : start + count]
    return ngrams ^ (ngrams >> np.uint64(29))


def shingles(hashes: Hashes, n: int) -> Hashes:
    """Return the n-grams of a text; of a shorter one, the whole."""
    return ngram_hashes(hashes, min(n, len(hashes)))


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode())
