"""Random numbers by position: an element gets the same one however the tensor is cut into blocks.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key and a counter
into random bits. The key is that of seed, model and tensor; the counter is the element.
"""

import hashlib

import numpy as np

from dualign.merging.methods.tensors import Array

_WORDS = 4  # 64-bit words of one Philox counter; an element takes one word


def stream(seed: int, model: int, tensor: str) -> int:
    """Return the 128-bit key of a tensor of a model. Models are numbered, so a folder may move."""
    text = f"{seed}:{model}:{tensor}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")


def uniform(key: int, start: int, stop: int) -> Array:
    """Return a number in [0, 1) for each element in [start, stop), float64."""
    before = start % _WORDS
    bits = np.random.Philox(key=key, counter=start // _WORDS)
    words = bits.random_raw(stop - start + before)[before:]
    numbers: Array = (words >> np.uint64(11)).astype(np.float64)
    numbers *= 2.0**-53
    return numbers
