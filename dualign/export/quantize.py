"""Quantize a float16 GGUF file: to Q8_0, or to llama.cpp's mixture Q4_K_M.

Q4_K_M uses six bits for the most sensitive tensors: the output matrix, and the value and down
projections of the first and last eighth of the layers and of every third layer between. Rows whose
width isn't a multiple of 256 can't be Q4_K or Q6_K; they become Q5_0 or Q8_0, as in llama.cpp.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dualign.checkpoints.dtypes import Array
from dualign.checkpoints.shards import cpu_count
from dualign.errors import CheckpointError
from dualign.export import ggml
from dualign.export.writer import FILE_TYPES, FileTensor, write_tensors

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

_NARROW = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that blocks of 256 don't divide
_PIECE = 1 << 22  # elements that a thread packs at once
_SAMPLE = 1 << 20  # elements of a tensor that are dequantized and compared
_MAX_ERROR = 0.15  # relative error of a tensor; Q4_K has about 0.07 on normal numbers
_REWRITTEN = frozenset({"general.architecture", "general.file_type"})


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationResult:
    """Types and error of the tensors."""

    types: Mapping[str, int]
    """number of tensors of each type"""
    error: float
    """root mean square of the change relative to the weights, over a sample of each tensor"""


def quantize(source: Path, out: Path, *, type: str) -> QuantizationResult:
    """Write `source` (f16 or f32) to `out` as `q8_0` or `q4_k_m`, with the same settings.

    Raises:
        CheckpointError: the quantizer isn't installed, or changes a tensor by more than 15 %.
    """
    from gguf import GGUFReader, GGUFWriter

    if type == "q4_k_m":
        ggml.library()
    reader = GGUFReader(source)
    writer = GGUFWriter(str(out), str(reader.fields["general.architecture"].contents()))
    _copy_settings(reader, writer)
    writer.add_file_type(FILE_TYPES[type])
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    types = types_of(shapes, type)
    errors: list[tuple[float, float]] = []
    with ThreadPoolExecutor(cpu_count()) as pool:
        tensors = [
            _file_tensor(t.name, t.data, shapes[t.name], types.get(t.name), pool, errors)
            for t in reader.tensors
        ]
        write_tensors(writer, tensors, label=f"quantizing to {type}")
    change, total = (math.fsum(column) for column in zip(*errors, strict=True))
    return QuantizationResult(
        types=dict(Counter(tensor.type for tensor in tensors)), error=math.sqrt(change / total)
    )


def types_of(shapes: Mapping[str, tuple[int, ...]], type: str) -> dict[str, str]:
    """Return the type of each tensor that is quantized, by its GGUF name."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if type == "q8_0":
        return {name: _type_for("Q8_0", shape[1]) for name, shape in matrices.items()}
    blocks = 1 + max(_block(name) for name in shapes)
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    types = {}
    for name, shape in matrices.items():
        six_bits = name == head or (
            name.endswith(("attn_v.weight", "ffn_down.weight")) and _more_bits(_block(name), blocks)
        )
        types[name] = _type_for("Q6_K" if six_bits else "Q4_K", shape[1])
    return types


def _more_bits(block: int, blocks: int) -> bool:
    """llama.cpp's use_more_bits: of 16 blocks, 0, 1, 4, 7, 10, 13, 14 and 15."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _type_for(type: str, width: int) -> str:
    """Return `type`, or the nearest type that rows of this width can have."""
    if type in _NARROW and width % ggml.BLOCK:
        type = _NARROW[type]
    return type if width % 32 == 0 else "F16"


def _block(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _copy_settings(reader: "GGUFReader", writer: "GGUFWriter") -> None:
    from gguf import GGUFValueType

    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in _REWRITTEN:
            continue
        kind = field.types[0]
        part = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, part)


def _file_tensor(
    name: str,
    data: Array,
    shape: tuple[int, ...],
    type: str | None,
    pool: ThreadPoolExecutor,
    errors: list[tuple[float, float]],
) -> FileTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if type is None:
        kind = {"float16": "F16", "float32": "F32"}[str(data.dtype)]
        return FileTensor(name, shape, kind, data.nbytes, lambda: data)
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType[type]]

    def make() -> Array:
        packed = np.concatenate(list(pool.map(lambda rows: _pack(rows, type), _pieces(data))))
        errors.append(_squared_error(name, data, packed, type))
        return packed

    return FileTensor(name, shape, type, math.prod(shape) // block * width, make)


def _pieces(data: Array) -> Iterator[Array]:
    rows = max(_PIECE // data.shape[1], 1)
    for start in range(0, data.shape[0], rows):
        yield data[start : start + rows]


def _pack(rows: Array, type: str) -> Array:
    """Quantize rows; returns uint8 rows of blocks."""
    from gguf import GGMLQuantizationType, quants

    values = rows.astype(np.float32)
    if type in _NARROW:
        return ggml.quantize_rows(values, type)
    packed: Array = quants.quantize(values, GGMLQuantizationType[type])
    return packed.view(np.uint8).reshape(len(rows), -1)


def _squared_error(name: str, data: Array, packed: Array, type: str) -> tuple[float, float]:
    """Return the sums of squares of change and values, over the tensor's first rows."""
    from gguf import GGMLQuantizationType, quants

    rows = max(_SAMPLE // data.shape[1], 1)
    before = data[:rows].astype(np.float64)
    sample = packed[:rows].view(np.float16) if type == "F16" else packed[:rows]
    after = quants.dequantize(sample, GGMLQuantizationType[type])
    change, total = float(np.square(after - before).sum()), float(np.square(before).sum())
    if not change <= _MAX_ERROR**2 * total:
        raise CheckpointError(
            f"{name}: quantizing to {type} changes it by {math.sqrt(change / total):.0%}, more than "
            f"{_MAX_ERROR:.0%}; export as f16 or q8_0"
        )
    return change, total
