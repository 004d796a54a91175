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

INSTALL = "pip install 'dualign[gguf]'"


def quantize_rows(rows: Array, type: str, importance: Array | None = None) -> Array:
    """Quantize float32 rows to a type of ggml: uint8 rows of blocks.

    Args:
        type: a name of GGMLQuantizationType, such as `Q4_K`; its block divides the width.
        importance: a weight for each column, float32: errors of columns count by it.

    Raises:
        CheckpointError: no package with llama.cpp's quantizer is installed, or it is another one.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[type]
    block, nbytes = GGML_QUANT_SIZES[kind]
    count, width = rows.shape
    packed = np.empty((count, width // block * nbytes), np.uint8)
    source = np.ascontiguousarray(rows, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = library().ggml_quantize_chunk(
        int(kind),
        source.ctypes.data,
        packed.ctypes.data,
        0,
        count,
        width,
        None if weights is None else weights.ctypes.data,
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
        f"types other than f32, f16, bf16 and q8_0 need llama.cpp's quantizer: {INSTALL} (or "
        "llama-cpp-python)"
    )


def _candidates() -> Iterator[Path]:
    """Yield llama-cpp-python's libggml, then xllamacpp's extension, which contains all of ggml."""
    ending = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    if (spec := find_spec("llama_cpp")) and spec.origin:
        yield from sorted((Path(spec.origin).parent / "lib").glob(f"*ggml-base.{ending}"))
    if find_spec("xllamacpp") and (spec := find_spec("xllamacpp.xllamacpp")) and spec.origin:
        yield Path(spec.origin)
