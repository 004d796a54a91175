"""Random numbers by place: the same for an element however the tensor is cut and whoever draws.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key and a counter
into random bits. The key is that of seed, model and tensor; the counter is the element.
"""

import hashlib

import numpy as np

from dualign.merging.methods.tensors import Array

_WORDS = 4  # 64-bit words of one Philox counter: one for each element


def stream(seed: int, model: int, tensor: str) -> int:
    """The 128-bit key of a tensor of a model. Models are counted, so that a folder may move."""
    text = f"{seed}:{model}:{tensor}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")


def uniform(key: int, start: int, stop: int) -> Array:
    """For each element in [start, stop) a number in [0, 1), float64."""
    before = start % _WORDS
    bits = np.random.Philox(key=key, counter=start // _WORDS)
    words = bits.random_raw(stop - start + before)[before:]
    drawn: Array = (words >> np.uint64(11)).astype(np.float64)
    drawn *= 2.0**-53
    return drawn
