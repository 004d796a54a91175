"""llama.cpp's own quantizer of whole files, where its library is: in llama-cpp-python, or in $LLAMA_CPP_LIB.

xllamacpp leaves it out. npm has it: `npm pack @node-llama-cpp/linux-x64`, folder bins/linux-x64.
"""

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from gguf import LlamaFileType

from dualign.checkpoints.dtypes import Array


class _Columns(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


class _Parameters(ctypes.Structure):
    _fields_ = (
        ("threads", ctypes.c_int32),
        ("file_type", ctypes.c_int),
        ("output_type", ctypes.c_int),
        ("embedding_type", ctypes.c_int),
        ("flags", ctypes.c_bool * 6),
        ("imatrix", ctypes.c_void_p),
        ("pointers", ctypes.c_void_p * 3),
    )


def folder() -> Path | None:
    if "LLAMA_CPP_LIB" in os.environ:
        return Path(os.environ["LLAMA_CPP_LIB"])
    spec = find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None


@cache
def _library() -> ctypes.CDLL:
    place = folder()
    assert place is not None
    for pattern in ("libggml-base.so*", "libggml.*so*", "libllama.*so*"):
        for file in sorted(place.glob(pattern)):
            library = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    library.llama_model_quantize_default_params.restype = _Parameters
    return library


def quantize(source: Path, out: Path, type: str, columns: Mapping[str, Array] | None) -> int:
    """Quantize a file; returns 0 if llama.cpp did it."""
    library = _library()
    parameters = library.llama_model_quantize_default_params()
    parameters.threads = 1
    parameters.file_type = int(LlamaFileType[f"MOSTLY_{type.upper()}"])
    if columns is not None:
        kept = {name: np.ascontiguousarray(data, np.float32) for name, data in columns.items()}
        entries = (_Columns * (len(kept) + 1))()
        for entry, (name, data) in zip(entries, kept.items(), strict=False):
            entry.name, entry.size = name.encode(), data.size
            entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = ctypes.cast(entries, ctypes.c_void_p)
    names = str(source).encode(), str(out).encode()
    return int(library.llama_model_quantize(*names, ctypes.byref(parameters)))
