"""Means per mode and per source of what a trainer computes, kept as sums so that they add up over batches and ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


@contextmanager
def capture_outputs(model: torch.nn.Module) -> Iterator[list[Any]]:
    """Every output of `model`'s forward passes inside the block, in order."""
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


class GroupTotals:
    """Sums and counts per (mode, source) of named figures since they were last asked for."""

    def __init__(self, groups: Sequence[tuple[str, str]]) -> None:
        self._groups = tuple(groups)
        self._sums: dict[str, Tensor] = {}

    def add(
        self, name: str, values: Tensor, group_ids: Tensor, counted: Tensor | None = None
    ) -> None:
        """Add `values` to the groups that `group_ids` (same shape) names, where `counted` is true."""
        ids = group_ids.reshape(-1)
        flat = values.reshape(-1).double()
        ones = torch.ones_like(flat) if counted is None else counted.reshape(-1).double()
        sums = self._sums.setdefault(
            name, torch.zeros(2, len(self._groups), dtype=torch.float64, device=flat.device)
        )
        sums[0].scatter_add_(0, ids, flat * ones)
        sums[1].scatter_add_(0, ids, ones)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """`{"loss/think": ..., "loss/source/NAME": ...}` over all ranks; starts anew. Groups that had nothing are left out."""
        found: dict[str, float] = {}
        for name, sums in self._sums.items():
            total, count = accelerator.reduce(sums, reduction="sum")
            for label, members in self._labels(name).items():
                if (n := float(count[members].sum())) > 0:
                    found[label] = float(total[members].sum()) / n
        self._sums.clear()
        return found

    def _labels(self, name: str) -> dict[str, list[int]]:
        labels: dict[str, list[int]] = {}
        for i, (mode, source) in enumerate(self._groups):
            labels.setdefault(f"{name}/{mode}", []).append(i)
            labels.setdefault(f"{name}/source/{source}", []).append(i)
        return labels
