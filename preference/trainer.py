"""TRL's DPOTrainer on pairs that are already tokenised, with rewards, margins and accuracies of each mode in the logs."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOTrainer

from dualign.training.per_group_metrics import GroupTotals, capture_outputs
from dualign.training.policy import (
    REFERENCE_ADAPTER,
    activate_policy_adapters,
    activate_reference_adapter,
)


class DualModeDPOTrainer(DPOTrainer):
    """Trains exactly as DPOTrainer does; `groups` are the (mode, source) names that `group_ids` index.

    With an adapter of the stage before on the model, that adapter alone is the reference: the policy before its first
    step. P pairs, T tokens.
    """

    def __init__(self, *args: Any, groups: Sequence[tuple[str, str]], **kwargs: Any) -> None:
        self._totals = {True: GroupTotals(groups), False: GroupTotals(groups)}
        super().__init__(*args, **kwargs)
        # From here on DPOTrainer reads the reference from the batch; `compute_loss` puts it there when it isn't cached.
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """The rows come tokenised. DPOTrainer has no switch for that, as SFTTrainer has in `dataset_kwargs`."""
        return dataset

    def compute_ref_log_probs(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        inputs = {key: value for key, value in inputs.items() if key != "group_ids"}
        unwrapped = self.accelerator.unwrap_model(self.model)
        if isinstance(unwrapped, PeftModel) and REFERENCE_ADAPTER in unwrapped.peft_config:
            return self._parent_logps(unwrapped, model, inputs)
        chosen_P, rejected_P = super().compute_ref_log_probs(self.ref_model or model, inputs)
        return chosen_P, rejected_P

    def _parent_logps(
        self, unwrapped: PeftModel, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of chosen and rejected [P] with the new adapter off and the parent's on."""
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
        with capture_outputs(self.model) as seen:
            result = super().compute_loss(model, inputs, *args, **kwargs)
        policy_P = seen[0].log_probs.detach().sum(dim=1).chunk(2, dim=0)
        reference_P = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        chosen_P, rejected_P = (
            self.beta * (p - r) for p, r in zip(policy_P, reference_P, strict=True)
        )
        totals = self._totals[self.model.training]
        for name, values_P in (
            ("rewards/chosen", chosen_P),
            ("rewards/rejected", rejected_P),
            ("rewards/margins", chosen_P - rejected_P),
            ("rewards/accuracies", (chosen_P > rejected_P).float()),
        ):
            totals.add(name, values_P, group_ids_P)
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        means = self._totals[training].means(self.accelerator)
        logs.update({name if training else f"eval_{name}": value for name, value in means.items()})
        super().log(logs, *args, **kwargs)
