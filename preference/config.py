"""The preference part of a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dualign.data.config import DataConfig
from dualign.data.conversation import RowType
from dualign.preference.losses.problems import loss_problems, unused_settings
from dualign.preference.losses.settings import loss_names
from dualign.preference.losses.table import estimates_kl, needs_reference, of_rated
from dualign.preference.start_margins import start_figures, start_line, start_warning
from dualign.preference.verdicts import verdict_notes
from dualign.training.arguments import DPO_ARGUMENTS
from dualign.training.config import TrainingStage, training_problems

Reference = Literal["auto", "adapter", "cached", "copy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceStage(TrainingStage):
    """APO (arXiv 2408.06266), DPO, SimPO, KTO and the others of docs/preference.md, on rows of both modes."""

    data: DataConfig
    """the pairs, or for kto and apo_zero_unpaired the rated answers; packing and supervise don't apply"""
    kind: Literal["preference"] = "preference"
    """what the stage does"""
    reference: Reference = "auto"
    """adapter: the policy, new adapter off; cached: log-probabilities once; copy: a frozen copy"""
    batch_tokens: int | None = None
    """most tokens of a batch, in place of train.per_device_train_batch_size; a shared prompt counts once"""
    train: Annotated[Mapping[str, Any], DPO_ARGUMENTS] = field(default_factory=dict)
    """every other field of TRL's DPOConfig (loss_type, beta, ...), by its own name"""

    @property
    def reference_source(self) -> Literal["adapter", "cached", "copy"] | None:
        """Where the reference's log-probabilities come from; None: no loss of the mix needs any."""
        if not needs_reference(loss_names(self.train)):
            return None
        if self.reference == "cached":
            return "cached"
        return "copy" if self.lora is None else "adapter"

    @property
    def row_type(self) -> RowType:
        """Pairs, or rated answers: what its losses take."""
        return "rated" if of_rated(loss_names(self.train)) else "pair"

    @property
    def depends_on_processes(self) -> str:
        return "" if self.batch_tokens is None else "batch_tokens fills batches"

    @property
    def answers_per_row(self) -> int:
        """How many answers are scored after each prompt: those of a pair; one, and another row's for a KL."""
        names = loss_names(self.train)
        return 1 if of_rated(names) and not estimates_kl(names) else 2

    def data_notes(self, rows: Mapping[str, Any]) -> list[str]:
        verdicts = verdict_notes(rows, self.train) if self.row_type == "rated" else ()
        return [*TrainingStage.data_notes(self, rows), *verdicts]

    def start_words(self, margins: Sequence[float]) -> tuple[str, ...]:
        """Return what the start model says of the pairs, and where that contradicts the loss."""
        figures = start_figures(margins)
        warning = start_warning(loss_names(self.train), figures)
        return (start_line(figures), *([f"warning: {warning}"] if warning else []))

    def unused(self) -> list[tuple[str, str]]:
        return unused_settings(self.train)

    def problems(self) -> list[tuple[str, str]]:
        issues = TrainingStage.problems(self) + training_problems(self.train, self.dtype, self.data)
        issues += loss_problems(self.train)
        if self.data.stream:
            needs = "is for sft stages: batches and references of pairs need all of them beforehand"
            issues.append(("data.streaming", f"{needs}; remove it"))
        if self.reference != "auto" and self.reference_source is None:
            names = ", ".join(loss_names(self.train))
            issues.append(("reference", f"{names} compares with no reference: remove it"))
        if self.reference == "adapter" and self.lora is None:
            issues.append(
                ("reference", "adapter needs lora: without one there is no adapter to switch off")
            )
        if self.reference == "copy" and self.lora is not None:
            issues.append(
                (
                    "reference",
                    "with lora the reference is the adapter switched off: a copy is waste",
                )
            )
        if self.lora and self.lora.bias != "none" and self.reference_source == "adapter":
            issues.append(
                (
                    "lora.bias",
                    "trains biases of the base, so the model with its adapter off is no longer the start model, "
                    "which is the reference: set reference: cached, or bias: none",
                )
            )
        issues += _batch_problems(self.batch_tokens, self.train)
        if self.train.get("train_sampling_strategy") == "group_by_length":
            issues.append(
                ("train.train_sampling_strategy", "pairs have no length: set random or sequential")
            )
        if self.data.packing != "none":
            issues.append(("data.packing", "pairs aren't packed: set data.packing: none"))
        if self.data.supervise != "assistant":
            issues.append(("data.supervise", "pairs are always supervised on chosen and rejected"))
        return issues


def _batch_problems(batch_tokens: int | None, train: Mapping[str, Any]) -> list[tuple[str, str]]:
    if batch_tokens is None:
        return []
    if batch_tokens < 1:
        return [("batch_tokens", f"expected 1 or more, found {batch_tokens}")]
    if estimates_kl(loss_names(train)):
        says = "kto scores each prompt with the answer of another row of its batch, which is of a fixed number of rows"
        return [("batch_tokens", f"{says}: set train.per_device_train_batch_size instead")]
    return [
        (f"train.{name}", f"batch_tokens {reason}: remove one of the two")
        for name, reason in (
            ("per_device_train_batch_size", "bounds the batches"),
            ("auto_find_batch_size", "bounds the batches"),
            ("train_sampling_strategy", "draws the batches"),
        )
        if name in train
    ]
