"""Means per mode and per source of a trainer's figures, kept as sums that add up over batches and
ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


@contextmanager
def capture_outputs(model: torch.nn.Module) -> Iterator[list[Any]]:
    """Collect every output of `model`'s forward passes inside the block, in order."""
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


class PerGroupMetrics:
    """Sums and counts of figures per (mode, source) since the last log, apart for training and
    validation; with `overall` also of all groups.
    """

    def __init__(self, groups: Sequence[tuple[str, str]], *, overall: bool = False) -> None:
        self._groups = tuple(groups)
        self._overall = overall
        self._sums: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}

    def add(
        self,
        name: str,
        values: Tensor,
        group_ids: Tensor | None,
        *,
        training: bool,
        mask: Tensor | None = None,
    ) -> None:
        """Add `values` to the groups in `group_ids`, where `mask` is true; all of one shape.

        Without `group_ids` they count overall alone.
        """
        wide = torch.float32 if values.device.type == "mps" else torch.float64  # MPS has no float64
        flat = values.reshape(-1).to(wide)
        rest = len(self._groups)
        ids = flat.new_full(flat.shape, rest).long() if group_ids is None else group_ids.reshape(-1)
        counts = torch.ones_like(flat) if mask is None else mask.reshape(-1).to(wide)
        zeros = torch.zeros(2, rest + 1, dtype=wide, device=flat.device)
        sums = self._sums[training].setdefault(name, zeros)
        sums[0].scatter_add_(0, ids, flat * counts)
        sums[1].scatter_add_(0, ids, counts)

    def pop_means(self, accelerator: Accelerator, *, training: bool) -> dict[str, float]:
        """Return the means over all ranks and reset the sums.

        `{"loss/think": ..., "loss/source/NAME": ...}`, and `"loss"` overall, with `eval_` before each name in validation.
        Groups without a value are left out.
        """
        means: dict[str, float] = {}
        for name, sums in self._sums[training].items():
            total, count = accelerator.reduce(sums, reduction="sum")
            for label, members in self._members(name).items():
                if (n := float(count[members].sum())) > 0:
                    means[label if training else f"eval_{label}"] = float(total[members].sum()) / n
        self._sums[training].clear()
        return means

    def _members(self, name: str) -> dict[str, list[int]]:
        """Return the indices of groups behind each label: a mode's, and a source's."""
        members: dict[str, list[int]] = {}
        if self._overall:
            members[name] = list(range(len(self._groups) + 1))
        for i, (mode, source) in enumerate(self._groups):
            members.setdefault(f"{name}/{mode}", []).append(i)
            members.setdefault(f"{name}/source/{source}", []).append(i)
        return members
