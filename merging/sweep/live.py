"""A model in memory that takes the weights of one merge after the other, without a file between.

The numbers are those of the written merge: each block is computed in float64 and rounded to the
type that would be written, and only then to that of the model in memory (float32 on a CPU), which
is exact if it is wider.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualign.checkpoints.checkpoint import Reader, Weights
from dualign.checkpoints.dtypes import (
    DTYPE_CODES,
    DTYPE_NAMES,
    Array,
    NotFiniteError,
    from_float,
    to_float32,
)
from dualign.checkpoints.shards import PIECE, cpu_count, keep_freed_blocks
from dualign.errors import MergeError
from dualign.models.loading import empty_model

_SHARE = 1 << 20  # elements that a thread sets before it takes more work
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class _Target:
    """A parameter as a numpy array: its own storage on a CPU, else a copy to move at the end."""

    name: str
    parameter: Tensor
    elements: Array
    stored: str
    """the type of `elements`"""
    shared: bool
    """`elements` is the parameter's own storage"""


class LiveModel:
    """A model in memory; `apply` sets its weights to those of a merge."""

    def __init__(self, folder: Path, *, dtype: str) -> None:
        """Build the model from the config and generation settings in `folder`."""
        self.model: PreTrainedModel = empty_model(folder, dtype=dtype)
        self.threads = cpu_count()

    def apply(self, weights: Weights, *, dtype: str = "input") -> None:
        """Set every parameter to what `write_weights(weights, dtype=dtype)` would write.

        Raises:
            MergeError: a number isn't finite in that type, or model and weights don't have the same
                tensors. The model can't be used until another merge was applied.
        """
        keep_freed_blocks()
        pool = ThreadPoolExecutor(self.threads)
        try:
            pending: list[Future[None]] = []
            for target in self._targets(weights):
                written = (
                    weights.entries[target.name].dtype if dtype == "input" else DTYPE_CODES[dtype]
                )
                shares = _shares(weights.reader(target.name), len(target.elements))
                futures = [pool.submit(_set, weights, target, written, *share) for share in shares]
                if target.shared:
                    pending += futures
                else:
                    _wait(futures)
                    _move(target)
            _wait(pending)
        finally:
            pool.shutdown(cancel_futures=True)

    def _targets(self, weights: Weights) -> list[_Target]:
        """Return the parameters, the largest first. Tied parameters are one tensor."""
        parameters = self.model.state_dict(keep_vars=True)
        _require_same(parameters, weights)
        names = sorted(weights.entries, key=lambda name: -weights.entries[name].size)
        return [_target(name, parameters[name]) for name in names]


def _require_same(parameters: dict[str, Tensor], weights: Weights) -> None:
    """Check that every tensor has a parameter of its shape, and that no parameter is left out."""
    for name, entry in weights.entries.items():
        shape = tuple(parameters[name].shape) if name in parameters else None
        if shape != entry.shape:
            other = "no such parameter" if shape is None else f"one of shape {shape}"
            raise MergeError(
                f"{weights.folders[0]}: {name} is {entry.shape}, and the model in memory has {other}; candidates of "
                "this architecture can't be applied to a live model: give the sweep a command, which gets them written"
            )
    storages = {parameters[name].data_ptr() for name in weights.entries}
    for name, parameter in parameters.items():
        if parameter.data_ptr() not in storages:
            raise MergeError(
                f"{weights.folders[0]}: the model has a parameter {name}, for which the merge has no tensor; give the "
                "sweep a command, which gets candidates written"
            )


def _target(name: str, parameter: Tensor) -> _Target:
    stored = _TYPES[parameter.dtype]
    shared = parameter.device.type == "cpu" and parameter.is_contiguous()
    storage = parameter.detach() if shared else torch.empty(parameter.shape, dtype=parameter.dtype)
    flat = storage.reshape(-1)
    # numpy has no bfloat16: view its bits as integers.
    elements = flat.view(torch.uint16).numpy() if stored == "BF16" else flat.numpy()
    return _Target(name, parameter, elements, stored, shared)


def _wait(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()


def _move(target: _Target) -> None:
    """Copy the elements to the parameter's device."""
    tensor: Any = torch.from_numpy(target.elements)
    if target.stored == "BF16":
        tensor = tensor.view(torch.bfloat16)
    with torch.no_grad():
        target.parameter.copy_(tensor.reshape(target.parameter.shape))


def _shares(reader: Reader, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) for the threads; the whole tensor if opening its reader is expensive."""
    step = reader.step or PIECE
    length = max(_SHARE // step, 1) * step if reader.random_access else max(size, 1)
    for start in range(0, size, length):
        yield start, min(start + length, size)


def _set(weights: Weights, target: _Target, written: str, first: int, last: int) -> None:
    """Set the elements [first, last) of a parameter, rounded as they would be written."""
    reader = weights.reader(target.name)
    step = reader.step or PIECE
    for start in range(first, last, step):
        stop = min(start + step, last)
        values = reader.read(start, stop)
        try:
            rounded = from_float(values, written)
        except NotFiniteError as error:
            place, value = start + error.place, values[error.place]
            raise MergeError(
                f"{target.name} would hold {value} at element {place}, as {DTYPE_NAMES[written]}; choose a wider dtype or "
                "smaller weights"
            ) from None
        target.elements[start:stop] = _converted(rounded, written, target.stored)


def _converted(values: Array, written: str, stored: str) -> Array:
    """Convert values of the written type to the type of the model."""
    if stored == written:
        return values
    wide = to_float32(values, written)
    return wide if stored == "F32" else from_float(wide, stored)
