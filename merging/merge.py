"""Merging: checkpoints and adapters of one architecture -> one model folder.

    dualign merge recipes/smollm3/merge.yaml

One tensor of every input is in memory at a time: it is summed, rounded once, and written. What must
agree between the inputs is checked before the first byte is written, and some tensors are computed
again after the last.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualign.checkpoints.checkpoint import Checkpoint, Weights
from dualign.checkpoints.shards import plan, write_side_files, write_tensors
from dualign.checkpoints.weights import open_weights
from dualign.errors import MergeError
from dualign.merging.config import MergeStage
from dualign.merging.methods import linear, normalized
from dualign.merging.preflight import check_configs, check_dtypes, check_tensors, check_tokenizers
from dualign.rundir import Outcome

Method = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
METHODS: dict[str, Method] = {"linear": linear}

VERIFIED_TENSORS = 3
_BLOCK = 1 << 22  # elements compared at once, to bound the memory of float64 copies


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """Tensors read back and compared with a float64 sum."""

    tensors: tuple[str, ...]
    worst_error: float
    """the largest distance from the float64 sum, as a share of what rounding allows"""


def run(stage: MergeStage, work: Path, *, seed: int) -> Outcome:
    """Write the merged model folder into `work`. The models of `stage` are folders or hub ids.

    Raises:
        MergeError: the inputs, or their weights, can't be merged.
        CheckpointError: an input is missing or broken, or the disk is full.
    """
    weights = applied_weights(stage)
    models = [open_weights(one.model) for one in stage.models]
    donor = models[
        0
        if stage.config_from is None
        else [one.model for one in stage.models].index(stage.config_from)
    ]
    differences = _preflight(stage, models)
    method = METHODS[stage.method]

    def merged(name: str) -> Tensor:
        return method([model.read(name) for model in models], weights)

    planned = plan(donor, stage.dtype)
    files = write_tensors(work, planned, merged)
    write_side_files(donor, work, dtype=stage.dtype)
    verified = verify(work, models, weights, seed=seed)
    inputs = [
        {
            "model": one.model,
            "weight": weight,
            "sha256": {str(file): sha256(file) for file in model.files},
        }
        for one, weight, model in zip(stage.models, weights, models, strict=True)
    ]
    return Outcome(
        metrics={
            "method": stage.method,
            "dtype": stage.dtype,
            "tensors": len(planned),
            "bytes": sum(one.nbytes for one in planned),
            "shards": len(files),
            "models": inputs,
        },
        checks={
            "verified": asdict(verified),
            "taken_from_config_donor": differences,
            "config_donor": str(donor.folders[0]),
        },
    )


def applied_weights(stage: MergeStage) -> list[float]:
    """The weights that tensors are multiplied with, float64."""
    problems = [*stage.problems(), *(problem for one in stage.models for problem in one.problems())]
    if problems:
        raise MergeError("\n".join(f"{stage.name}: {key}: {message}" for key, message in problems))
    weights = [one.weight for one in stage.models]
    return normalized(weights) if stage.normalize else weights


def _preflight(stage: MergeStage, models: Sequence[Weights]) -> dict[str, list[Any]]:
    """Check that the inputs agree; returns the differences that `config_from` decided."""
    chosen = stage.config_from is not None
    configs = check_configs(models, chosen=chosen)
    check_tensors(models)
    if stage.dtype == "input":
        check_dtypes(models)
    return {**configs, **check_tokenizers(models, chosen=chosen)}


def verify(
    out: Path, models: Sequence[Weights], weights: Sequence[float], *, seed: int
) -> Verified:
    """Compare tensors of `out`, drawn by `seed`, with their float64 sum.

    Raises:
        MergeError: an element is further away than its rounding allows.
    """
    written = Checkpoint(out)
    names = sorted(written.entries)
    drawn = tuple(random.Random(seed).sample(names, min(VERIFIED_TENSORS, len(names))))
    worst = 0.0
    for name in drawn:
        error = _worst_error(written.read(name), [model.read(name) for model in models], weights)
        if not error <= 1:
            raise MergeError(
                f"{out}: {name} reads back {error:.3g} times further from the sum than rounding "
                "allows; check the disk, and merge again"
            )
        worst = max(worst, error)
    return Verified(tensors=drawn, worst_error=worst)


def _worst_error(written: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> float:
    """The distance from the float64 sum, over what rounding to float32 and to the type allows."""
    info = torch.finfo(written.dtype)
    flat = [tensor.reshape(-1) for tensor in (written, *tensors)]
    worst = 0.0
    for start in range(0, flat[0].numel(), _BLOCK):
        out, *parts = (tensor[start : start + _BLOCK].double() for tensor in flat)
        terms = [part * weight for part, weight in zip(parts, weights, strict=True)]
        exact = torch.stack(terms).sum(0)
        slack = torch.stack(terms).abs().sum(0) * (len(terms) + 1) * torch.finfo(torch.float64).eps
        rounding = exact.abs() * (info.eps + torch.finfo(torch.float32).eps) / 2
        allowed = rounding + slack + info.smallest_normal * info.eps
        worst = max(worst, float(((out - exact).abs() / allowed).max()))
    return worst


def sha256(file: Path) -> str:
    """The file's SHA-256, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
