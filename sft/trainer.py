"""TRL's SFTTrainer, with the loss of each mode and source in the logs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl import SFTTrainer

from dualign.data.tokens.shards import WHOLE
from dualign.models.head import add_label_scores
from dualign.training.checkpointing import SavesCheckpoints
from dualign.training.finite_steps import FiniteSteps
from dualign.training.pausing import EndsAtLastStep
from dualign.training.per_group_metrics import PerGroupMetrics, capture_outputs
from dualign.training.sequence_parallel import SequenceParallel
from dualign.training.streaming import TrainsOnStream


class DualModeSFTTrainer(
    FiniteSteps, EndsAtLastStep, SavesCheckpoints, SequenceParallel, TrainsOnStream, SFTTrainer
):
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

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the batches of a step, and how many labels all processes have in it."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.sequence_parts > 1 and batches:
            items = self.labels_of_step(batches, device)
        return batches, items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        group_ids_BT = inputs.pop("group_ids")
        is_part = inputs.pop(WHOLE, None) is not None
        with capture_outputs(self.model) as outputs:
            result = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        log_probs = outputs[0].log_probs  # [1, T-1] or of a part [1, S], zero without a label
        self._group_metrics.add(
            "loss",
            -log_probs.detach(),
            # A label is of the document of the position before it.
            group_ids_BT if is_part else group_ids_BT[:, 1:],
            training=self.model.training,
            mask=outputs[0].label_mask,
        )
        if is_part:
            assert num_items_in_batch is not None and not return_outputs
            return self.loss_of_parts(log_probs, num_items_in_batch)
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        logs.update(self._group_metrics.pop_means(self.accelerator, training=training))
        super().log(logs, *args, **kwargs)
