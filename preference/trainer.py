"""TRL's DPOTrainer on tokenized pairs, with rewards, margins and accuracies of each mode logged."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOTrainer

from dualign.training.finite_steps import FiniteSteps
from dualign.training.per_group_metrics import PerGroupMetrics, capture_outputs
from dualign.training.policy import (
    REFERENCE_ADAPTER,
    activate_policy_adapters,
    activate_reference_adapter,
)


class DualModeDPOTrainer(FiniteSteps, DPOTrainer):
    """Trains exactly as DPOTrainer; `groups` are the (mode, source) names that `group_ids` index.

    If the model has an adapter of the stage before, that adapter alone is the reference: the policy
    before its first step.

    Shapes: P pairs, B rows (chosen, then rejected), T tokens.
    """

    def __init__(self, *args: Any, groups: Sequence[tuple[str, str]], **kwargs: Any) -> None:
        self.groups = groups
        self._group_metrics = PerGroupMetrics(groups)
        super().__init__(*args, **kwargs)
        # From here on DPOTrainer reads the reference log-probabilities from the batch; unless they
        # are cached, `compute_loss` puts them there.
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Return the rows: they are tokenized, and DPOTrainer has no switch that says so."""
        return dataset

    def compute_ref_log_probs(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        inputs = {key: value for key, value in inputs.items() if key != "group_ids"}
        unwrapped = self.accelerator.unwrap_model(self.model)
        if isinstance(unwrapped, PeftModel) and REFERENCE_ADAPTER in unwrapped.peft_config:
            return self._reference_logps(unwrapped, model, inputs)
        chosen_P, rejected_P = super().compute_ref_log_probs(
            model if self.ref_model is None else self.ref_model, inputs
        )
        return chosen_P, rejected_P

    def _reference_logps(
        self, unwrapped: PeftModel, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of chosen and rejected [P] under the reference adapter alone."""
        labels_BT = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        activate_reference_adapter(unwrapped)
        try:
            with torch.no_grad(), self.accelerator.autocast():
                output = model(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    labels=labels_BT,
                    use_cache=False,
                    fused_lm_head=True,
                )
        finally:
            activate_policy_adapters(unwrapped)
        chosen_P, rejected_P = output.log_probs.sum(dim=1).chunk(2, dim=0)
        return chosen_P, rejected_P

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        group_ids_P = inputs.pop("group_ids")
        if "ref_chosen_logps" not in inputs:
            reference_P = self.compute_ref_log_probs(model, inputs)
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = reference_P
        with capture_outputs(self.model) as outputs:
            result = super().compute_loss(model, inputs, *args, **kwargs)
        policy_P = outputs[0].log_probs.detach().sum(dim=1).chunk(2, dim=0)
        reference_P = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        chosen_P, rejected_P = (
            self.beta * (p - r) for p, r in zip(policy_P, reference_P, strict=True)
        )
        for name, values_P in (
            ("rewards/chosen", chosen_P),
            ("rewards/rejected", rejected_P),
            ("rewards/margins", chosen_P - rejected_P),
            ("rewards/accuracies", (chosen_P > rejected_P).float()),
        ):
            self._group_metrics.add(name, values_P, group_ids_P, training=self.model.training)
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        logs.update(self._group_metrics.pop_means(self.accelerator, training=training))
        super().log(logs, *args, **kwargs)
