"""A base as QLoRA training saw it: linear weights in NF4 and back (arXiv 2305.14314, section 3).

Each block of 64 numbers is scaled by its largest absolute value to 16 levels; the scales are
quantized too, in blocks of 256 around their mean. The numbers equal those of bitsandbytes on the
same machine, to the bit; their mean is torch's, whose last bit depends on processor and threads.
Half a byte per number of the tensor being read is in memory.
"""

from collections.abc import Callable, Mapping
from functools import cache
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
_CHUNK = 1 << 18  # elements at once; a multiple of BLOCK


class NF4Weights:
    """A base's weights after NF4 and back; `dtype` is the type that training loaded them in."""

    def __init__(self, base: Weights, *, dtype: str | None = None) -> None:
        _require_bitsandbytes()
        self.base = base
        self.dtype = dtype
        self.folders: tuple[Path, ...] = base.folders
        self.files: tuple[Path, ...] = base.files
        self.config: Mapping[str, Any] = base.config
        self.entries: Mapping[str, Entry] = base.entries
        linear = {f"{path}.weight" for path in quantized_modules(build_meta_model(base.config))}
        self.quantized = linear & set(base.entries)

    def reader(self, name: str) -> Reader:
        """Open a tensor as training saw it; a linear weight is quantized at its first read."""
        entry, stored = self.entries[name], self.base.reader(name)
        dtype = self.dtype or DTYPE_NAMES[entry.dtype]

        def rounded(start: int, stop: int) -> Array:
            return to_float32(
                from_float(stored.read(start, stop), DTYPE_CODES[dtype]), DTYPE_CODES[dtype]
            )

        if name not in self.quantized:
            return Reader(rounded, step=stored.step, random_access=stored.random_access)
        tensor = cache(lambda: _NF4Tensor(rounded, entry.size, getattr(torch, dtype)))
        return Reader(lambda start, stop: tensor().read(start, stop), random_access=False)


class _NF4Tensor:
    """One tensor in NF4."""

    def __init__(self, read: Callable[[int, int], Array], size: int, dtype: torch.dtype) -> None:
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
        codes, state = functional.quantize_blockwise(absmax - mean, blocksize=SCALES)
        self.scales: Tensor = functional.dequantize_blockwise(codes, state) + mean

    def read(self, start: int, stop: int) -> Array:
        """Dequantize elements [start, stop) to float32."""
        first = start // _CHUNK
        parts = [self._chunk(i) for i in range(first, -(-stop // _CHUNK))]
        values: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values[start - first * _CHUNK : stop - first * _CHUNK]

    def _chunk(self, i: int) -> Array:
        from bitsandbytes import functional

        blocks = _CHUNK // BLOCK
        size = min(_CHUNK, self.size - i * _CHUNK)
        scales = self.scales[i * blocks : (i + 1) * blocks]
        state = functional.QuantState(
            scales, shape=(size,), blocksize=BLOCK, quant_type="nf4", dtype=self.dtype
        )
        values = functional.dequantize_4bit(self.codes[i], state).float()
        chunk: Array = values.reshape(-1).numpy()
        return chunk


def _require_bitsandbytes() -> None:
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise CheckpointError("nf4: needs the package bitsandbytes; pip install 'dualign[quant]'")
