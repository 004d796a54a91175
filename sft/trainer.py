"""TRL's SFTTrainer, with the loss of each mode and source in the logs."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl import SFTTrainer

from dualign.models.head import add_label_scores
from dualign.training.finite_steps import FiniteSteps
from dualign.training.pausing import EndsAtLastStep
from dualign.training.per_group_metrics import PerGroupMetrics, capture_outputs
from dualign.training.streaming import TrainsOnStream


class DualModeSFTTrainer(FiniteSteps, EndsAtLastStep, TrainsOnStream, SFTTrainer):
    """Trains exactly as SFTTrainer; `groups` are the (mode, source) names that `group_ids` index.

    Shapes: B rows, T tokens.
    """

    def __init__(self, *args: Any, groups: Sequence[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = self.model
        # Instead of TRL's head, which scores every position on a CPU; these figures are its metrics.
        add_label_scores(
            model.get_base_model() if isinstance(model, PeftModel) else model,
            extras=("entropy", "is_top1"),
        )
        self.groups = groups
        self._group_metrics = PerGroupMetrics(groups)

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        group_ids_BT = inputs.pop("group_ids")
        with capture_outputs(self.model) as outputs:
            result = super().compute_loss(model, inputs, *args, **kwargs)
        self._group_metrics.add(
            "loss",
            -outputs[0].log_probs.detach(),  # [1, T-1], zero where nothing is supervised
            group_ids_BT[:, 1:],
            training=self.model.training,
            mask=outputs[0].label_mask,
        )
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        logs.update(self._group_metrics.pop_means(self.accelerator, training=training))
        super().log(logs, *args, **kwargs)
