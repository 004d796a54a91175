"""pytorch_model.bin, read without running it: torch's weights-only reader, on a mapped file.

A pickle is a program. The weights-only reader runs none of it but the making of tensors, and
refuses a file that asks for more. The numbers stay in the file until they are read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.checkpoints.header import Entry
from dualign.errors import CheckpointError

_ASKS_FOR = re.compile(r"(?:GLOBAL|class|function) ([\w.]+)")


class Pickle:
    """The tensors of one file, by name. `read` gives stretches as they are stored."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tensors = _load(file)

    def entries(self) -> dict[str, Entry]:
        """Every tensor's shape and type, in safetensors' names; an offset means nothing here."""
        return {
            name: Entry(tuple(tensor.shape), _code(self.file, name, tensor.dtype), self.file, 0)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> Any:
        """The elements [start, stop) in numpy, bfloat16 as the uint16 of its bits."""
        import torch

        piece = self._tensors[name].view(-1)[start:stop]
        if piece.dtype == torch.bfloat16:
            return piece.view(torch.uint16).numpy()
        return piece.numpy()


def _load(file: Path) -> Mapping[str, Any]:
    import pickle

    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        asked = _ASKS_FOR.search(str(error))
        raise CheckpointError(
            f"{file}: asks for {asked[1] if asked else 'more than tensors'} while it is read, which "
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
    if not isinstance(found, dict) or not all(
        isinstance(one, torch.Tensor) for one in found.values()
    ):
        raise CheckpointError(f"{file}: expected tensors by name, found {_kind(found)}")
    for name, tensor in found.items():
        if not tensor.is_contiguous() or tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(
                f"{file}: {name} isn't stored in one piece, in order; save it as safetensors"
            )
    return found


def _kind(found: object) -> str:
    if not isinstance(found, dict):
        return type(found).__name__
    other = {name: type(one).__name__ for name, one in found.items()}
    name = next(name for name, kind in other.items() if kind not in ("Tensor", "Parameter"))
    return f"{name!r}, a {other[name]}"


def _code(file: Path, name: str, dtype: Any) -> str:
    """The type in safetensors' names."""
    kinds = {
        "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64",
        "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    }  # fmt: skip
    word = str(dtype).removeprefix("torch.")
    if word not in kinds:
        raise CheckpointError(f"{file}: {name} has the type {word}, which isn't one of weights")
    return kinds[word]
