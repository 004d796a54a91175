"""The merge methods, in one table: inputs, parameters and function of each.

A new method is a file in this folder, with a function `(tensors, **parameters) -> Combine`, and a
row of `METHODS`. Functions are named by text and imported when a merge is computed, so configs are
checked without numpy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method."""

    kind: Literal["number", "switch", "whole"] = "number"
    default: float | bool | None = None
    """None: required"""
    min: float | None = None
    max: float | None = None
    argument: str | None = ""
    """the function's argument; empty: the name in YAML; None: accepted, without effect"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One method. Numbers of models don't count the base model."""

    implementation: str
    """MODULE:FUNCTION in this folder"""
    base: Literal["required", "optional", "none"]
    min_models: int = 1
    max_models: int | None = None
    per_model: Mapping[str, Parameter] = field(default_factory=dict)
    """parameters with a value for each model"""
    global_: Mapping[str, Parameter] = field(default_factory=dict)
    """parameters with one value for all models"""
    elementwise: bool = False
    """an element of the result depends only on the same element of the inputs"""

    @property
    def parameters(self) -> dict[str, Parameter]:
        """All parameters, by name."""
        return {**self.per_model, **self.global_}

    @property
    def function(self) -> Callable[..., Any]:
        """The function `(tensors, **parameters) -> Combine`. Imports its module, and so numpy."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)  # type: ignore[no-any-return]

    def arguments(self, values: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Return the function's arguments for `count` models; defaults for missing `values`."""
        arguments: dict[str, Any] = {}
        for name, spec in self.parameters.items():
            default = [spec.default] * count if name in self.per_model else spec.default
            if spec.argument is not None:
                arguments[spec.argument or name] = values.get(name, default)
        return arguments


_WEIGHT = {"weight": Parameter()}
_THINNED = {**_WEIGHT, "density": Parameter(default=1.0, min=0.0, max=1.0)}
_CRUMBS = {**_THINNED, "gamma": Parameter(default=0.01, min=0.0, max=1.0)}
_RANKED = {**_THINNED, "epsilon": Parameter(default=0.15, min=0.0, max=0.5)}
_CHANGED = {"epsilon": Parameter(default=1e-5, min=0.0)}
# How mergekit keeps its masks in memory; it changes no number, there or here.
_INT8_MASK = {"int8_mask": Parameter("switch", False, argument=None)}
_LAMBDA = {"lambda": Parameter(default=1.0, argument="scale"), **_INT8_MASK}


def _thinned_sum(
    implementation: str,
    per_model: Mapping[str, Parameter],
    *,
    normalize: bool = False,
    rescale: bool = False,
) -> Method:
    """A row for a sum of thinned task vectors, with these defaults."""
    return Method(
        implementation=implementation,
        base="required",
        per_model=per_model,
        global_={
            "normalize": Parameter("switch", normalize),
            "rescale": Parameter("switch", rescale),
            **_LAMBDA,
        },
    )


METHODS: Mapping[str, Method] = {
    "linear": Method(
        implementation="linear:linear",
        base="none",
        per_model=_WEIGHT,
        global_={"normalize": Parameter("switch", True)},
        elementwise=True,
    ),
    "slerp": Method(
        implementation="slerp:slerp", base="required", max_models=1, global_={"t": Parameter()}
    ),
    "nuslerp": Method(
        implementation="nuslerp:nuslerp",
        base="optional",
        min_models=2,
        max_models=2,
        per_model=_WEIGHT,
        global_={
            "nuslerp_flatten": Parameter("switch", True),
            "nuslerp_row_wise": Parameter("switch", False),
        },
    ),
    "multislerp": Method(
        implementation="multislerp:multislerp",
        base="optional",
        per_model=_WEIGHT,
        global_={
            "normalize_weights": Parameter("switch", True),
            "eps": Parameter(default=1e-8, min=0.0),
        },
    ),
    "karcher": Method(
        implementation="karcher:karcher",
        base="none",
        global_={
            "max_iter": Parameter("whole", 10, min=0),
            "tol": Parameter(default=1e-5, min=0.0),
        },
    ),
    "task_arithmetic": Method(
        implementation="task_arithmetic:task_sum",
        base="required",
        per_model=_WEIGHT,
        global_={"normalize": Parameter("switch", False), **_LAMBDA},
        elementwise=True,
    ),
    "ties": _thinned_sum("ties:ties", _THINNED, normalize=True),
    "dare_linear": _thinned_sum("dare:dare_linear", _THINNED, rescale=True),
    "dare_ties": _thinned_sum("dare:dare_ties", _THINNED, rescale=True),
    "della": _thinned_sum("della:della", _RANKED, normalize=True, rescale=True),
    "della_linear": _thinned_sum("della:della_linear", _RANKED, rescale=True),
    "breadcrumbs": _thinned_sum("breadcrumbs:breadcrumbs", _CRUMBS),
    "breadcrumbs_ties": _thinned_sum("breadcrumbs:breadcrumbs_ties", _CRUMBS),
    "model_stock": Method(
        implementation="model_stock:model_stock",
        base="required",
        min_models=2,
        global_={"filter_wise": Parameter("switch", False)},
    ),
    "sce": Method(
        implementation="sce:sce",
        base="required",
        global_={"select_topk": Parameter(default=1.0, min=0.0, max=1.0), **_INT8_MASK},
    ),
    "ram": Method(implementation="ram:ram", base="required", global_=_CHANGED),
    "ramplus_tl": Method(
        implementation="ram:ramplus_tl",
        base="required",
        global_={
            "r": Parameter(default=0.1, min=0.0),
            "alpha": Parameter(default=0.2, min=0.0),
            **_CHANGED,
        },
    ),
    "nearswap": Method(
        implementation="nearswap:nearswap",
        base="required",
        max_models=1,
        global_={"t": Parameter(min=0.0)},
        elementwise=True,
    ),
    "arcee_fusion": Method(
        implementation="arcee_fusion:arcee_fusion", base="required", max_models=1
    ),
    "passthrough": Method(
        implementation="passthrough:passthrough",
        base="none",
        max_models=1,
        per_model={"scale": Parameter(default=1.0)},
        elementwise=True,
    ),
}
