"""Quantize a float16 GGUF file to one of llama.cpp's types, by llama.cpp's own row quantizer.

With an importance matrix, errors count by the mean square of the column that they are in.
"""

import math
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
from dualign.export.imatrix import ImportanceFile
from dualign.export.mixtures import needing_importance, types_of
from dualign.export.writer import FileTensor, file_type, write_tensors

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

_IN_NUMPY = frozenset({"Q8_0", "F16"})
"""Types that need no library of llama.cpp's."""
_PIECE = 1 << 22  # elements that a thread packs at once
_SAMPLE = 1 << 20  # elements of a tensor that are dequantized and compared
_MAX_ERROR = {1: 0.9, 2: 0.8, 3: 0.5, 4: 0.3}
_MAX_ERROR_FROM_FIVE = 0.15
"""Relative error of a tensor, by whole bits; normal numbers have half of it at most, and trained
ones with few large values about two thirds.
"""
_REWRITTEN = frozenset({"general.architecture", "general.file_type"})


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationResult:
    """Types and error of the tensors."""

    types: Mapping[str, int]
    """number of tensors of each type"""
    error: float
    """root mean square of the change relative to the weights, over a sample of each tensor"""


def needs_library(type: str) -> bool:
    """Return whether a file's type needs llama.cpp's quantizer, which a package ships."""
    return type not in ("f32", "f16", "bf16", "q8_0")


def quantize(
    source: Path, out: Path, *, type: str, importance: ImportanceFile | None = None
) -> QuantizationResult:
    """Write `source` (f16 or f32) to `out` as a type of `MIXTURES`, with the same settings.

    Raises:
        CheckpointError: the quantizer isn't installed, or ruins a tensor, or the importance matrix
            lacks one that is garbage without.
    """
    from gguf import GGUFReader, GGUFWriter

    if needs_library(type):
        ggml.library()
    reader = GGUFReader(source)
    writer = GGUFWriter(str(out), str(reader.fields["general.architecture"].contents()))
    _copy_settings(reader, writer)
    writer.add_file_type(file_type(type))
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    types = types_of(shapes, type, importance=importance is not None)
    columns = _columns(importance, types, type)
    if importance is not None:
        for key, value in importance.settings().items():
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    errors: list[tuple[float, float]] = []
    with ThreadPoolExecutor(cpu_count()) as pool:
        tensors = [
            _file_tensor(
                _Source(t.name, t.data, shapes[t.name], columns.get(t.name)),
                types.get(t.name),
                pool,
                errors,
            )
            for t in reader.tensors
        ]
        write_tensors(writer, tensors, label=f"quantizing to {type}")
    change, total = (math.fsum(column) for column in zip(*errors, strict=True))
    return QuantizationResult(
        types=dict(Counter(tensor.type for tensor in tensors)), error=math.sqrt(change / total)
    )


def _copy_settings(reader: "GGUFReader", writer: "GGUFWriter") -> None:
    from gguf import GGUFValueType

    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in _REWRITTEN:
            continue
        kind = field.types[0]
        part = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, part)


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor to quantize."""

    name: str
    data: Array
    shape: tuple[int, ...]
    columns: Array | None
    """importance of each column"""


def _columns(
    importance: ImportanceFile | None, types: Mapping[str, str], type: str
) -> dict[str, Array | None]:
    """Return the importance of the columns of each tensor.

    Raises:
        CheckpointError: a tensor has none and would be garbage.
    """
    columns = {name: importance.importance.columns(name) if importance else None for name in types}
    lacking = [name for name in needing_importance(types, type) if columns[name] is None]
    if lacking:
        raise CheckpointError(
            f"{lacking[0]}: {type} needs an importance matrix that has this tensor"
        )
    return columns


def _file_tensor(
    source: _Source,
    type: str | None,
    pool: ThreadPoolExecutor,
    errors: list[tuple[float, float]],
) -> FileTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name, data, shape = source.name, source.data, source.shape
    if type is None:
        kind = {"float16": "F16", "float32": "F32"}[str(data.dtype)]
        return FileTensor(name, shape, kind, data.nbytes, lambda: data)
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType[type]]

    def make() -> Array:
        pieces = pool.map(lambda rows: _pack(rows, type, source.columns), _pieces(data))
        packed = np.concatenate(list(pieces))
        errors.append(_squared_error(source, packed, type))
        return packed

    return FileTensor(name, shape, type, math.prod(shape) // block * width, make)


def _pieces(data: Array) -> Iterator[Array]:
    rows = max(_PIECE // data.shape[1], 1)
    for start in range(0, data.shape[0], rows):
        yield data[start : start + rows]


def _pack(rows: Array, type: str, columns: Array | None) -> Array:
    """Quantize rows; returns uint8 rows of blocks."""
    from gguf import GGMLQuantizationType, quants

    values = rows.astype(np.float32)
    if type not in _IN_NUMPY:
        return ggml.quantize_rows(values, type, columns)
    packed: Array = quants.quantize(values, GGMLQuantizationType[type])
    return packed.view(np.uint8).reshape(len(rows), -1)


def _squared_error(source: _Source, packed: Array, type: str) -> tuple[float, float]:
    """Return the sums of squares of change and values, over the tensor's first rows.

    Raises:
        CheckpointError: the change is too large; with importance, columns count by it.
    """
    from gguf import GGMLQuantizationType, quants

    rows = max(_SAMPLE // source.data.shape[1], 1)
    before = source.data[:rows].astype(np.float64)
    sample = packed[:rows].view(np.float16) if type == "F16" else packed[:rows]
    after = quants.dequantize(sample, GGMLQuantizationType[type])
    squares = np.square(after - before), np.square(before)
    weights = 1.0 if source.columns is None else source.columns.astype(np.float64)
    change, total = (float((weights * square).sum()) for square in squares)
    worst = _max_error(type)
    if not change <= worst**2 * total:
        raise CheckpointError(
            f"{source.name}: quantizing to {type} changes it by {math.sqrt(change / total):.0%}, more "
            f"than {worst:.0%}; export as f16 or q8_0"
        )
    return float(squares[0].sum()), float(squares[1].sum())


def _max_error(type: str) -> float:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    return _MAX_ERROR.get(8 * nbytes // block, _MAX_ERROR_FROM_FIVE)
