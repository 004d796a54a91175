"""Peak memory of a training stage, estimated from the model's dimensions, with each term's formula.

`dualign plan` prints it before anything is loaded. The peak isn't the sum of all terms, because
gradients grow while activations are freed. So the estimate adds up the terms alive at a few moments
of a step and takes the maximum. All figures are bytes for one process.

Example, SFT without LoRA and without accumulation: in the backward pass of the last layer, weights,
optimizer, all activations and the head's gradient are alive; at the optimizer step, weights,
optimizer and all gradients, but no activations. Long rows make the first larger, a large model the
second.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dualign.cost import terms
from dualign.cost.lora_shape import LoraShape
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape

_TERMS: Mapping[str, Callable[[ModelShape, TrainingShape], terms.Term]] = {
    "weights": terms.weights,
    "master_weights": terms.master_weights,
    "gradients": terms.gradients,
    "optimizer": terms.optimizer,
    "reference": terms.reference,
    "activations": terms.saved_activations,
    "on_host": terms.on_host,
    "logits": terms.logits,
    "head_gradient": terms.head_gradient,
    "workspace": terms.workspace,
    "step": terms.step,
    "saving": terms.saving,
    "framework": terms.framework,
}
# Terms alive at every moment.
_STEADY = ("weights", "master_weights", "optimizer", "reference", "framework")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Each term at its full size, and the terms alive at each moment of a step."""

    weights: int
    master_weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    on_host: int
    """activations moved to the host's memory: part of no moment"""
    logits: int
    """the fused output head in its backward pass"""
    head_gradient: int
    """the output head's gradient, which comes before all others"""
    workspace: int
    """the layer that is being differentiated"""
    step: int
    """temporaries of the optimizer step"""
    saving: int
    framework: int
    formulas: Mapping[str, str]
    """term -> its formula with numbers"""
    moments: Mapping[str, tuple[str, ...]]
    """moment of a step -> terms alive"""

    def at(self, moment: str) -> int:
        """Return the bytes alive at a moment."""
        return sum(getattr(self, name) for name in self.moments[moment])

    @property
    def peak(self) -> str:
        """The moment that needs the most."""
        return max(self.moments, key=self.at)

    @property
    def total(self) -> int:
        return self.at(self.peak)

    def lines(self) -> tuple[str, ...]:
        """Return a line for each term that isn't zero, then one for the peak."""
        sizes = {name: getattr(self, name) for name in self.formulas}
        lines = [
            f"{name:<14} {_size(size):>10} = {self.formulas[name]}"
            for name, size in sizes.items()
            if size
        ]
        alive = " + ".join(name for name in self.moments[self.peak] if sizes[name])
        return (*lines, f"{'peak':<14} {_size(self.total):>10} = {alive} ({self.peak})")


def estimate(shape: ModelShape, training: TrainingShape) -> MemoryEstimate:
    """Estimate the peak memory of one process that trains `shape` as `training` says."""
    by_name = {name: term(shape, training) for name, term in _TERMS.items()}
    return MemoryEstimate(
        **{name: round(term.bytes) for name, term in by_name.items()},
        formulas={name: term.formula for name, term in by_name.items()},
        moments=_moments(shape, training),
    )


def _moments(shape: ModelShape, training: TrainingShape) -> Mapping[str, tuple[str, ...]]:
    earlier = ("gradients",) if training.gradient_accumulation > 1 else ()
    # A tied or accumulated embedding already has a gradient when the embedding's own arrives.
    second = ("head_gradient",) if shape.tied or earlier else ()
    return {
        "loss": (*_STEADY, *earlier, "activations", "logits", "head_gradient"),
        "backward of the last layer": (
            *_STEADY,
            *earlier,
            "activations",
            "head_gradient",
            "workspace",
        ),
        "backward of the first layer": (*_STEADY, "gradients", *second, "workspace"),
        "optimizer step": (*_STEADY, "gradients", "step"),
        "saving": (*_STEADY, "saving"),
    }


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


__all__ = ["LoraShape", "MemoryEstimate", "ModelShape", "TrainingShape", "estimate"]
