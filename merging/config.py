"""The merge part of a recipe: which checkpoints, with which weights."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedModel:
    """One input of a merge."""

    model: str
    """a model folder or adapter folder, a hub id, stage:NAME, or embedded:smollm2-135m-instruct"""
    weight: float = 1.0
    """its share; divided by the sum of all weights with normalize"""

    def problems(self) -> list[tuple[str, str]]:
        if math.isfinite(self.weight):
            return []
        return [("weight", f"expected a finite number, found {self.weight}")]


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeStage:
    """A weighted sum of checkpoints of one architecture.

    Equal weights make a soup. One model alone is copied, with its adapter folded in.
    """

    name: str
    """names the stage and its run directory"""
    models: tuple[MergedModel, ...]
    """the inputs; config, tokenizer and template come from the first one"""
    kind: Literal["merge"] = "merge"
    """what the stage does"""
    method: Literal["linear"] = "linear"
    """linear: the sum of weight times tensor, in float64, rounded once"""
    normalize: bool = True
    """divide the weights by their sum, so that they add up to 1"""
    dtype: Literal["float32", "bfloat16", "float16", "input"] = "input"
    """the type of the written weights; input: that of the inputs, which must agree"""
    config_from: str | None = None
    """the one of the models whose config, tokenizer settings and template win where they differ"""

    def problems(self) -> list[tuple[str, str]]:
        if not self.models:
            return [("models", "expected at least one model, found none")]
        found = self._weight_problems()
        names = [one.model for one in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        found += [
            ("models", f"{name!r} is listed more than once: list it once with its whole weight")
            for name in twice
        ]
        if self.config_from is not None and self.config_from not in names:
            found.append(
                ("config_from", f"expected one of {', '.join(names)}, found {self.config_from!r}")
            )
        return found

    def _weight_problems(self) -> list[tuple[str, str]]:
        weights = [one.weight for one in self.models]
        if not all(map(math.isfinite, weights)):
            return [("models", f"expected finite weights, found {weights}")]
        if not any(weights):
            return [("models", f"expected a weight other than 0, found {weights}")]
        # Beside the weights' own size, so that 0.1 + 0.2 - 0.3 counts as the 0 that was meant.
        if self.normalize and abs(math.fsum(weights)) <= 1e-9 * max(map(abs, weights)):
            return [
                (
                    "models",
                    f"weights {weights} add up to 0, so they can't be normalised: "
                    "set normalize: false",
                )
            ]
        return []
