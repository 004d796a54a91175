"""What a training stage needs in memory, from the model's dimensions alone, with the formula of each term.

`dualign plan` prints it before anything is loaded. Peak memory isn't the sum of all terms: gradients grow while
activations are freed. So the estimate looks at a few moments of a step, adds up what is alive at each, and takes the
largest. All figures are bytes for one process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dualign.cost import terms
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import LoraShape, TrainingShape

_TERMS: Mapping[str, Callable[[ModelShape, TrainingShape], terms.Term]] = {
    "weights": terms.weights,
    "master_weights": terms.master_weights,
    "gradients": terms.gradients,
    "optimizer": terms.optimizer,
    "reference": terms.reference,
    "activations": terms.kept_activations,
    "logits": terms.logits,
    "head_gradient": terms.head_gradient,
    "workspace": terms.workspace,
    "step": terms.step,
    "saving": terms.saving,
    "framework": terms.framework,
}
# Alive at every moment.
_STEADY = ("weights", "master_weights", "optimizer", "reference", "framework")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Each term at its full size, and what they come to at the worst moment of a step."""

    weights: int
    master_weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    logits: int
    """the fused output head at work"""
    head_gradient: int
    """the output head's gradient, there before all others"""
    workspace: int
    """the layer that is being differentiated"""
    step: int
    """temporaries of the optimiser's step"""
    saving: int
    framework: int
    how: Mapping[str, str]
    """term -> its formula with the numbers filled in"""
    moments: Mapping[str, tuple[str, ...]]
    """moment of a step -> the terms alive then"""

    def at(self, moment: str) -> int:
        """Bytes alive at a moment."""
        return sum(getattr(self, name) for name in self.moments[moment])

    @property
    def peak(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=self.at)

    @property
    def total(self) -> int:
        return self.at(self.peak)

    def formula(self) -> tuple[str, ...]:
        """A line for each term that isn't zero, then one for the peak."""
        sizes = {name: getattr(self, name) for name in self.how}
        lines = [
            f"{name:<14} {_size(size):>10} = {self.how[name]}"
            for name, size in sizes.items()
            if size
        ]
        alive = " + ".join(name for name in self.moments[self.peak] if sizes[name])
        return (*lines, f"{'peak':<14} {_size(self.total):>10} = {alive} ({self.peak})")


def estimate(shape: ModelShape, training: TrainingShape) -> MemoryEstimate:
    """Peak memory of one process that trains `shape` as `training` says."""
    found = {name: term(shape, training) for name, term in _TERMS.items()}
    return MemoryEstimate(
        **{name: round(term.bytes) for name, term in found.items()},
        how={name: term.how for name, term in found.items()},
        moments=_moments(shape, training),
    )


def _moments(shape: ModelShape, training: TrainingShape) -> Mapping[str, tuple[str, ...]]:
    earlier = ("gradients",) if training.gradient_accumulation > 1 else ()
    # A tied or accumulated embedding has a gradient already when its own arrives.
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
