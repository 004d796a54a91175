"""llama.cpp's row quantizer, called through ctypes in whichever package ships it.

xllamacpp has no binding for it, and llama-cpp-python, which has, comes without wheels.
"""

import ctypes
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dualign.checkpoints.dtypes import Array
from dualign.errors import CheckpointError

# (ggml.h: enum ggml_type, bytes of a block of 256 numbers)
_CODES = {"Q4_K": (12, 144), "Q6_K": (14, 210)}
BLOCK = 256
INSTALL = "pip install 'dualign[gguf]'"


def quantize_rows(rows: Array, type: str) -> Array:
    """Quantize float32 rows, a multiple of 256 wide, to `Q4_K` or `Q6_K`: uint8 rows of blocks.

    Raises:
        CheckpointError: no package with llama.cpp's quantizer is installed.
    """
    code, nbytes = _CODES[type]
    count, width = rows.shape
    packed = np.empty((count, width // BLOCK * nbytes), np.uint8)
    source = np.ascontiguousarray(rows, np.float32)
    written = library().ggml_quantize_chunk(
        code, source.ctypes.data, packed.ctypes.data, 0, count, width, None
    )
    if written != packed.nbytes:
        raise CheckpointError(
            f"llama.cpp wrote {written} bytes of {type}, expected {packed.nbytes}"
        )
    return packed


@cache
def library() -> ctypes.CDLL:
    """Return the shared library with the quantizer."""
    for file in _candidates():
        try:
            shared = ctypes.CDLL(str(file))
            chunk = shared.ggml_quantize_chunk
        except (OSError, AttributeError):  # built for another system, or without the symbol
            continue
        chunk.restype = ctypes.c_size_t
        chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        return shared
    raise CheckpointError(
        f"q4_k_m needs llama.cpp's quantizer: {INSTALL} (or llama-cpp-python); f16 and q8_0 don't"
    )


def _candidates() -> Iterator[Path]:
    """Yield llama-cpp-python's libggml, then xllamacpp's extension, which contains all of ggml."""
    ending = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    if (spec := find_spec("llama_cpp")) and spec.origin:
        yield from sorted((Path(spec.origin).parent / "lib").glob(f"*ggml-base.{ending}"))
    if find_spec("xllamacpp") and (spec := find_spec("xllamacpp.xllamacpp")) and spec.origin:
        yield Path(spec.origin)
