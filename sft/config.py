"""The SFT part of a recipe.

Reasoning mid-training is this stage with its own template and `data.supervise: all`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dualign.config import nearest
from dualign.data.config import DataConfig
from dualign.training.arguments import SFT_ARGUMENTS
from dualign.training.config import TrainingStage, training_problems

_LOSSES = ("nll", "dft")


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTStage(TrainingStage):
    """Supervised fine-tuning on packed conversations of both modes."""

    data: DataConfig
    """what is trained on, and how it is packed and supervised"""
    kind: Literal["sft"] = "sft"
    """what the stage does"""
    train: Annotated[Mapping[str, Any], SFT_ARGUMENTS] = field(default_factory=dict)
    """every other field of TRL's SFTConfig (and so of TrainingArguments), by its own name"""

    def problems(self) -> list[tuple[str, str]]:
        issues = TrainingStage.problems(self) + training_problems(self.train, self.dtype, self.data)
        loss = self.train.get("loss_type", "nll")
        if loss not in _LOSSES:
            issues.append(
                ("train.loss_type", f"unknown value {loss!r}{nearest(str(loss), _LOSSES)}")
            )
        return issues
