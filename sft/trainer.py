"""TRL's SFTTrainer, with the loss of each mode and source in the logs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from dualign.training.per_group_metrics import GroupTotals, capture_outputs


class DualModeSFTTrainer(SFTTrainer):
    """Trains exactly as SFTTrainer does; `groups` are the (mode, source) names that `group_ids` index."""

    def __init__(self, *args: Any, groups: Sequence[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._totals = {True: GroupTotals(groups), False: GroupTotals(groups)}

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        group_ids_BT = inputs.pop("group_ids")
        with capture_outputs(self.model) as seen:
            result = super().compute_loss(model, inputs, *args, **kwargs)
        losses_BT = -seen[0].log_probs.detach()  # [1, T-1], zero where nothing is supervised
        shown_BT = seen[0].label_mask
        self._totals[self.model.training].add("loss", losses_BT, group_ids_BT[:, 1:], shown_BT)
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        means = self._totals[training].means(self.accelerator)
        logs.update({name if training else f"eval_{name}": value for name, value in means.items()})
        super().log(logs, *args, **kwargs)
