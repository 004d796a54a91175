"""Tensors of saved files that hold a NaN or an infinity."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dualign.errors import CheckpointError


def non_finite_tensors(folder: Path) -> dict[str, int]:
    """Return `FILE: TENSOR` -> number of NaN or infinite values, over every safetensors file there.

    One tensor at a time is in memory.

    Raises:
        CheckpointError: a file isn't safetensors.
    """
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a handle can't be iterated
                    if count := _non_finite(tensors.get_tensor(name)):
                        counts[f"{file.name}: {name}"] = count
        except SafetensorError as error:
            raise CheckpointError(f"{file}: not a whole safetensors file ({error})") from None
    return counts


def _non_finite(tensor: Any) -> int:
    if not tensor.is_floating_point():
        return 0
    # A NaN or an infinity always spoils the sum: one pass, and no mask in memory.
    total = tensor.float().sum() if tensor.itemsize < 2 else tensor.sum(dtype=tensor.dtype)
    if bool(total.isfinite()):
        return 0
    return int((~tensor.float().isfinite()).sum())
