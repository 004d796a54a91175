"""A base as QLoRA training saw it: the linear weights in NF4 and back (arXiv 2305.14314, section 3).

Each block of 64 numbers is scaled by its largest to 16 levels; the scales are quantised too, in blocks of 256 around
their mean. The numbers are those of bitsandbytes, to the bit, on any machine. Of the tensor at hand half a byte per
number is in memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualign.checkpoints.checkpoint import Reader, Weights
from dualign.checkpoints.dtypes import DTYPE_CODES, DTYPE_NAMES, Array, from_float, to_float32
from dualign.checkpoints.header import Entry
from dualign.checkpoints.meta_model import build_meta_model, quantized_modules
from dualign.errors import CheckpointError

BLOCK, SCALES = 64, 256
_CHUNK = 1 << 18  # numbers at once; a multiple of BLOCK


class NF4Weights:
    """The weights of a base after NF4 and back, in the type that they were loaded in for training."""

    def __init__(self, base: Weights, *, dtype: str | None = None) -> None:
        _require_bitsandbytes()
        self.base = base
        self.dtype = dtype
        self.folders: tuple[Path, ...] = base.folders
        self.files: tuple[Path, ...] = base.files
        self.config: Mapping[str, Any] = base.config
        self.entries: Mapping[str, Entry] = base.entries
        quantised = {f"{path}.weight" for path in quantized_modules(build_meta_model(base.config))}
        self.quantised = quantised & set(base.entries)

    def reader(self, name: str) -> Reader:
        """The tensor as training saw it; a linear weight is quantised when it is first read."""
        entry, stored = self.entries[name], self.base.reader(name)
        dtype = self.dtype or DTYPE_NAMES[entry.dtype]

        def rounded(start: int, stop: int) -> Array:
            return to_float32(
                from_float(stored.read(start, stop), DTYPE_CODES[dtype]), DTYPE_CODES[dtype]
            )

        if name not in self.quantised:
            return Reader(rounded, step=stored.step, random_access=stored.random_access)
        made: list[_Quantised] = []

        def read(start: int, stop: int) -> Array:
            if not made:
                made.append(_Quantised(rounded, entry.size, getattr(torch, dtype)))
            return made[0].read(start, stop)

        return Reader(read, random_access=False)


class _Quantised:
    """One tensor in NF4."""

    def __init__(self, read: Any, size: int, dtype: torch.dtype) -> None:
        from bitsandbytes import functional

        self.size, self.dtype = size, dtype
        self.codes: list[Tensor] = []
        scales: list[Tensor] = []
        for start in range(0, size, _CHUNK):
            chunk = torch.from_numpy(read(start, min(start + _CHUNK, size))).to(dtype)
            codes, state = functional.quantize_4bit(chunk, blocksize=BLOCK, quant_type="nf4")
            self.codes.append(codes)
            scales.append(state.absmax)
        absmax = torch.cat(scales)
        mean = absmax.mean()
        held, nested = functional.quantize_blockwise(absmax - mean, blocksize=SCALES)
        self.scales: Tensor = functional.dequantize_blockwise(held, nested) + mean

    def read(self, start: int, stop: int) -> Array:
        """The numbers [start, stop), float32."""
        first = start // _CHUNK
        parts = [self._chunk(i) for i in range(first, -(-stop // _CHUNK))]
        whole: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[start - first * _CHUNK : stop - first * _CHUNK]

    def _chunk(self, i: int) -> Array:
        from bitsandbytes import functional

        blocks = _CHUNK // BLOCK
        size = min(_CHUNK, self.size - i * _CHUNK)
        scales = self.scales[i * blocks : (i + 1) * blocks]
        state = functional.QuantState(
            scales, shape=(size,), blocksize=BLOCK, quant_type="nf4", dtype=self.dtype
        )
        found: Array = functional.dequantize_4bit(self.codes[i], state).float().reshape(-1).numpy()
        return found


def _require_bitsandbytes() -> None:
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise CheckpointError("nf4: needs the package bitsandbytes; pip install 'dualign[quant]'")
