"""The methods by name: what each needs and which parameters it takes. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method."""

    kind: Literal["number", "switch", "whole"] = "number"
    default: float | bool | None = None
    """None: it must be given"""
    least: float | None = None
    most: float | None = None
    argument: str = ""
    """its name in Python, where that differs from the name in YAML; - for none"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What a method needs. Models don't count the base model."""

    base: Literal["required", "optional", "none"]
    fewest: int = 1
    most: int | None = None
    each: Mapping[str, Parameter] = field(default_factory=dict)
    """parameters that each model has a value of"""
    shared: Mapping[str, Parameter] = field(default_factory=dict)
    """parameters with one value for all models"""
    by_element: bool = False
    """an element of the result needs no more than the same element of the inputs"""
    random: bool = False


_WEIGHT = Parameter()
_DENSITY = Parameter(default=1.0, least=0.0, most=1.0)
_GAMMA = Parameter(default=0.01, least=0.0, most=1.0)
_EPSILON = Parameter(default=0.15, least=0.0, most=0.5)


def _task(
    *, normalize: bool = False, rescale: bool = False, random: bool = False, **each: Parameter
) -> Method:
    shared = {
        "normalize": Parameter("switch", normalize),
        "rescale": Parameter("switch", rescale),
        "lambda": Parameter(default=1.0, argument="scale"),
        # How mergekit keeps its masks in memory; it changes no number, there or here.
        "int8_mask": Parameter("switch", False, argument="-"),
    }
    each = {"weight": _WEIGHT, **each}
    return Method(base="required", each=each, shared=shared, random=random)


METHODS: Mapping[str, Method] = {
    "linear": Method(
        base="none",
        each={"weight": _WEIGHT},
        shared={"normalize": Parameter("switch", True)},
        by_element=True,
    ),
    "slerp": Method(base="required", most=1, shared={"t": Parameter()}),
    "nuslerp": Method(
        base="optional",
        fewest=2,
        most=2,
        each={"weight": _WEIGHT},
        shared={
            "nuslerp_flatten": Parameter("switch", True),
            "nuslerp_row_wise": Parameter("switch", False),
        },
    ),
    "multislerp": Method(
        base="optional",
        each={"weight": _WEIGHT},
        shared={
            "normalize_weights": Parameter("switch", True),
            "eps": Parameter(default=1e-8, least=0.0),
        },
    ),
    "karcher": Method(
        base="none",
        shared={
            "max_iter": Parameter("whole", 10, least=0),
            "tol": Parameter(default=1e-5, least=0.0),
        },
    ),
    "task_arithmetic": Method(
        base="required",
        each={"weight": _WEIGHT},
        shared={
            "normalize": Parameter("switch", False),
            "lambda": Parameter(default=1.0, argument="scale"),
            "int8_mask": Parameter("switch", False, argument="-"),
        },
        by_element=True,
    ),
    "ties": _task(normalize=True, density=_DENSITY),
    "dare_linear": _task(rescale=True, random=True, density=_DENSITY),
    "dare_ties": _task(rescale=True, random=True, density=_DENSITY),
    "della": _task(normalize=True, rescale=True, random=True, density=_DENSITY, epsilon=_EPSILON),
    "della_linear": _task(rescale=True, random=True, density=_DENSITY, epsilon=_EPSILON),
    "breadcrumbs": _task(density=_DENSITY, gamma=_GAMMA),
    "breadcrumbs_ties": _task(density=_DENSITY, gamma=_GAMMA),
    "model_stock": Method(
        base="required", fewest=2, shared={"filter_wise": Parameter("switch", False)}
    ),
    "sce": Method(
        base="required",
        shared={
            "select_topk": Parameter(default=1.0, least=0.0, most=1.0),
            "int8_mask": Parameter("switch", False, argument="-"),
        },
    ),
    "nearswap": Method(
        base="required", most=1, shared={"t": Parameter(least=0.0)}, by_element=True
    ),
    "arcee_fusion": Method(base="required", most=1),
    "passthrough": Method(
        base="none", most=1, each={"scale": Parameter(default=1.0)}, by_element=True
    ),
}
