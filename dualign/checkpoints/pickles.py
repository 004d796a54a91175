"""Read pytorch_model.bin without running it: torch's weights-only reader, on a mapped file.

A pickle is a program. The weights-only reader only makes tensors, and refuses a file that requests
more. The numbers stay in the file until they are read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.checkpoints.header import Entry
from dualign.errors import CheckpointError

_REQUESTED_NAME = re.compile(r"(?:GLOBAL|class|function) ([\w.]+)")


class Pickle:
    """The tensors of one file, by name. `read` returns ranges in the stored type."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tensors = _load(file)

    def entries(self) -> dict[str, Entry]:
        """Return shapes and types, by safetensors' names of types; offsets have no meaning."""
        return {
            name: Entry(tuple(tensor.shape), _code(self.file, name, tensor.dtype), self.file, 0)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> Any:
        """Read elements [start, stop) as numpy, bfloat16 as the uint16 of its bits."""
        import torch

        piece = self._tensors[name].view(-1)[start:stop]
        if piece.dtype == torch.bfloat16:
            return piece.view(torch.uint16).numpy()
        return piece.numpy()


def _load(file: Path) -> Mapping[str, Any]:
    import pickle

    import torch

    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        match = _REQUESTED_NAME.search(str(error))
        raise CheckpointError(
            f"{file}: asks for {match[1] if match else 'more than tensors'} while it is read, which "
            "no checkpoint needs and which could run anything; nothing of it was run. Don't use "
            "this file unless you know who made it"
        ) from None
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{file}: no such file") from None
        first = str(error).strip().partition("\n")[0][:120]
        raise CheckpointError(
            f"{file}: not a whole file of torch.save's zip form ({first}); fetch it again, or save "
            "it as safetensors"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(value, torch.Tensor) for value in tensors.values()
    ):
        raise CheckpointError(f"{file}: expected tensors by name, found {_kind(tensors)}")
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(
                f"{file}: {name} isn't stored in one piece, in order; save it as safetensors"
            )
    return tensors


def _kind(value: object) -> str:
    if not isinstance(value, dict):
        return type(value).__name__
    kinds = {name: type(item).__name__ for name, item in value.items()}
    name = next(name for name, kind in kinds.items() if kind not in ("Tensor", "Parameter"))
    return f"{name!r}, a {kinds[name]}"


def _code(file: Path, name: str, dtype: Any) -> str:
    """Return the type by safetensors' name."""
    kinds = {
        "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64",
        "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    }  # fmt: skip
    word = str(dtype).removeprefix("torch.")
    if word not in kinds:
        raise CheckpointError(f"{file}: {name} has the type {word}, which isn't one of weights")
    return kinds[word]
