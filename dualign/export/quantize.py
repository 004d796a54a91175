"""From a float16 GGUF file to a smaller one: Q8_0, or the mixture that llama.cpp calls Q4_K_M.

Q4_K_M keeps what hurts most in six bits: the output matrix, and the value and down projections of
the first and last eighth of the layers and of each third between. Rows that aren't a multiple of 256
wide can't be Q4_K or Q6_K; llama.cpp takes Q5_0 and Q8_0 for them, and so does this.
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
from dualign.checkpoints.shards import processors
from dualign.errors import CheckpointError
from dualign.export import ggml
from dualign.export.writer import FILE_TYPES, Stored, write_tensors

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

_NARROW = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that no block of 256 divides
_PIECE = 1 << 22  # numbers that a thread packs at once
_SAMPLE = 1 << 20  # numbers of a tensor that are unpacked again and compared
_WORST = 0.15  # relative error of a packed tensor; Q4_K has about 0.07 on normal numbers
_REWRITTEN = frozenset({"general.architecture", "general.file_type"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """What became of the tensors."""

    types: Mapping[str, int]
    """tensors of each type"""
    error: float
    """root mean square of the change, relative to the weights; over a sample of each tensor"""


def quantize(source: Path, out: Path, *, type: str) -> Quantized:
    """Write `source` (f16 or f32) to `out` as `q8_0` or `q4_k_m`, its settings as they are.

    Raises:
        CheckpointError: what packs is not installed, or a tensor didn't survive it.
    """
    from gguf import GGUFReader, GGUFWriter

    if type == "q4_k_m":
        ggml.library()
    reader = GGUFReader(source)
    writer = GGUFWriter(str(out), str(reader.fields["general.architecture"].contents()))
    _copy_settings(reader, writer)
    writer.add_file_type(FILE_TYPES[type])
    names = {one.name: tuple(int(n) for n in reversed(one.shape)) for one in reader.tensors}
    types = types_of(names, type)
    errors: list[tuple[float, float]] = []
    with ThreadPoolExecutor(processors()) as pool:
        stored = [
            _stored(one.name, one.data, names[one.name], types.get(one.name), pool, errors)
            for one in reader.tensors
        ]
        write_tensors(writer, stored, label=f"packing {type}")
    changed, whole = (math.fsum(column) for column in zip(*errors, strict=True))
    return Quantized(
        types=dict(Counter(one.type for one in stored)), error=math.sqrt(changed / whole)
    )


def types_of(shapes: Mapping[str, tuple[int, ...]], type: str) -> dict[str, str]:
    """The packed type of each tensor that is packed, by its name in GGUF."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if type == "q8_0":
        return {name: _fitting("Q8_0", shape[1]) for name, shape in matrices.items()}
    blocks = 1 + max(_block(name) for name in shapes)
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    found = {}
    for name, shape in matrices.items():
        kept = name == head or (
            name.endswith(("attn_v.weight", "ffn_down.weight")) and _more_bits(_block(name), blocks)
        )
        found[name] = _fitting("Q6_K" if kept else "Q4_K", shape[1])
    return found


def _more_bits(block: int, blocks: int) -> bool:
    """llama.cpp's use_more_bits."""
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


def _fitting(type: str, width: int) -> str:
    if type in _NARROW and width % ggml.BLOCK:
        type = _NARROW[type]
    return type if width % 32 == 0 else "F16"


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _copy_settings(reader: "GGUFReader", writer: "GGUFWriter") -> None:
    from gguf import GGUFValueType

    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in _REWRITTEN:
            continue
        kind = field.types[0]
        part = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, part)


def _stored(
    name: str,
    data: Array,
    shape: tuple[int, ...],
    type: str | None,
    pool: ThreadPoolExecutor,
    errors: list[tuple[float, float]],
) -> Stored:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if type is None:
        kept = {"float16": "F16", "float32": "F32"}[str(data.dtype)]
        return Stored(name, shape, kept, data.nbytes, lambda: data)
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType[type]]

    def make() -> Array:
        packed = np.concatenate(list(pool.map(lambda rows: _pack(rows, type), _pieces(data))))
        errors.append(_error(name, data, packed, type))
        return packed

    return Stored(name, shape, type, math.prod(shape) // block * width, make)


def _pieces(data: Array) -> Iterator[Array]:
    rows = max(_PIECE // data.shape[1], 1)
    for start in range(0, data.shape[0], rows):
        yield data[start : start + rows]


def _pack(rows: Array, type: str) -> Array:
    """Rows of packed blocks, uint8."""
    from gguf import GGMLQuantizationType, quants

    values = rows.astype(np.float32)
    if type in _NARROW:
        return ggml.quantize_rows(values, type)
    packed: Array = quants.quantize(values, GGMLQuantizationType[type])
    return packed.view(np.uint8).reshape(len(rows), -1)


def _error(name: str, data: Array, packed: Array, type: str) -> tuple[float, float]:
    """The squares of what packing changed and of what was there, in the tensor's first rows."""
    from gguf import GGMLQuantizationType, quants

    rows = max(_SAMPLE // data.shape[1], 1)
    before = data[:rows].astype(np.float64)
    sample = packed[:rows].view(np.float16) if type == "F16" else packed[:rows]
    after = quants.dequantize(sample, GGMLQuantizationType[type])
    changed, whole = float(np.square(after - before).sum()), float(np.square(before).sum())
    if not changed <= _WORST**2 * whole:
        raise CheckpointError(
            f"{name}: packing as {type} changes it by {math.sqrt(changed / whole):.0%}, more than "
            f"{_WORST:.0%}; export as f16 or q8_0"
        )
    return changed, whole
