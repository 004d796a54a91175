"""llama.cpp's own quantiser of rows, from whichever package of it is installed."""

import ctypes
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dualign.checkpoints.dtypes import Array
from dualign.errors import CheckpointError

# ggml.h: enum ggml_type, and the bytes of a block of 256 numbers
_CODES = {"Q4_K": (12, 144), "Q6_K": (14, 210)}
BLOCK = 256
INSTALL = "pip install 'dualign[gguf]'"


def quantize_rows(rows: Array, type: str) -> Array:
    """Rows of float32 (a multiple of 256 wide) as `Q4_K` or `Q6_K`: uint8, rows of packed blocks.

    Raises:
        CheckpointError: no package with llama.cpp's quantiser is installed.
    """
    code, nbytes = _CODES[type]
    count, width = rows.shape
    packed = np.empty((count, width // BLOCK * nbytes), np.uint8)
    source = np.ascontiguousarray(rows, np.float32)
    made = library().ggml_quantize_chunk(
        code, source.ctypes.data, packed.ctypes.data, 0, count, width, None
    )
    if made != packed.nbytes:
        raise CheckpointError(f"llama.cpp packed {made} bytes as {type}, expected {packed.nbytes}")
    return packed


@cache
def library() -> ctypes.CDLL:
    """The shared library that holds it."""
    for file in _candidates():
        try:
            found = ctypes.CDLL(str(file))
            chunk = found.ggml_quantize_chunk
        except (OSError, AttributeError):  # built for another system, or without the symbol
            continue
        chunk.restype = ctypes.c_size_t
        chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        return found
    raise CheckpointError(
        f"q4_k_m needs llama.cpp's quantiser: {INSTALL} (or llama-cpp-python); f16 and q8_0 don't"
    )


def _candidates() -> Iterator[Path]:
    """llama-cpp-python's libggml, then the extension of xllamacpp, which has all of ggml in it."""
    ending = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    if (spec := find_spec("llama_cpp")) and spec.origin:
        yield from sorted((Path(spec.origin).parent / "lib").glob(f"*ggml-base.{ending}"))
    if find_spec("xllamacpp") and (spec := find_spec("xllamacpp.xllamacpp")) and spec.origin:
        yield Path(spec.origin)
