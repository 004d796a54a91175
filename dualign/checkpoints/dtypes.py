"""Convert stored numbers to float32 and back; uint16 arrays hold the bits of bfloat16."""

from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from dualign.errors import MergeError

Array = NDArray[Any]

DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
DTYPE_CODES = {name: code for code, name in DTYPE_NAMES.items()}
STORED: dict[str, type[np.generic]] = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16}
# The bits of an infinity; NaN and infinities have these or larger ones, besides the sign.
_INFINITY = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
# From here on a number is stored as an infinity.
_TOO_LARGE = {"F32": np.inf, "BF16": 2.0**128 - 2.0**119, "F16": 65520.0}


def is_finite(stored: Array, dtype: str) -> bool:
    """Return True if no stored number is a NaN or an infinity."""
    if not stored.size:
        return True
    width, infinity = stored.itemsize, _INFINITY[dtype]
    # As signed integers the positive ones are the largest, as unsigned ones the negative ones.
    above, below = stored.view(f"i{width}").max(), stored.view(f"u{width}").max()
    return int(above) < infinity and int(below) < infinity + (1 << (8 * width - 1))


def to_float32(stored: Array, dtype: str) -> Array:
    """Convert stored numbers to float32; exact."""
    numbers = stored.view(bfloat16) if dtype == "BF16" else stored
    return numbers.astype(np.float32, copy=False)


def from_float(values: Array, dtype: str) -> Array:
    """Convert numbers to the stored form of `dtype`, rounded to nearest, ties to even.

    float64 is rounded to float32 first: sums such as 0.9 a + 0.1 b of bfloat16 values lie exactly
    between two of them in one case of ten, and there the last bit of a float64 is chance.

    Raises:
        MergeError: a number isn't finite, or too large for the type.
    """
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    limit = _TOO_LARGE[dtype]
    if single.size and not (single.max() < limit and single.min() > -limit):  # a NaN is neither
        bad = ~np.isfinite(values)
        raise NotFiniteError(int(np.argmax(bad if bad.any() else np.abs(values))))
    if dtype == "BF16":
        return single.astype(bfloat16).view(np.uint16)
    return single.astype(STORED[dtype], copy=False)


class NotFiniteError(MergeError):
    """A number that can't be stored; `place` is its index in the array."""

    def __init__(self, place: int) -> None:
        super().__init__(f"element {place} isn't finite, or too large for the type")
        self.place = place
