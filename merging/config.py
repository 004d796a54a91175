"""What is merged, and how: the merge part of a recipe, and the form that it shares with mergekit's.

A recipe's stage says it in a few words; mergekit's YAML (`dualign.merging.mergekit.load`) says more.
Both become a `Merge`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.config import Key, dotted, nearest
from dualign.merging.method_specs import METHODS
from dualign.merging.parameters import Level, problems

Dtype = Literal["float32", "bfloat16", "float16", "input"]
COMPATIBLE = ("linear", "slerp", "task_arithmetic")
"""the methods that can be computed with mergekit's roundings"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One model of a merge, or a range of its layers."""

    model: str
    parameters: Level
    layer_range: tuple[int, int] | None = None
    """the layers [first, last); None: all"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Layers of the merged model, made from as many layers of each source."""

    key: Key
    sources: tuple[Source, ...]
    parameters: Level
    base_model: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """Where a token's row comes from in models that don't have the token."""

    token: str
    model: str | None = None
    """the model whose row it is; None: a row of zeros"""
    row: str | int | None = None
    """another token of that model, or an id; None: the token itself"""
    force: bool = False
    """in the models that have the token, too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """The vocabulary of the merged model, where it isn't plainly that of one model."""

    union: bool = False
    """every token that a model has"""
    rows: tuple[TokenRow, ...] = ()
    pad_to_multiple_of: int | None = None
    """the embedding gets as few rows as that allows; None: as many as the tokenizer's model has"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """A merge, ready to be planned: every default of its form filled in."""

    file: str
    """where it is written, for messages"""
    lines: Mapping[Key, int] = field(default_factory=dict)
    method: str
    slices: tuple[Slice, ...]
    parameters: Level
    base_model: str | None = None
    dtype: Dtype = "input"
    config_from: str | None = None
    tokenizer_from: str | None = None
    tokens: Tokens | None = None
    chat_template: str | None = None
    """a template's text in place of that of the tokenizer; auto: the one that most models have"""
    allow_pickle: bool = False
    """read pytorch_model.bin where a model has no safetensors"""
    arithmetic: Dtype | None = None
    """mergekit's numbers instead of ours, in this type; input: that of the tensors"""
    inner: Mapping[str, "Merge"] = field(default_factory=dict)
    """merges that models of this one are the results of, by the name they are called there"""

    def models(self) -> list[str]:
        """Each model once, the base first among those that aren't sources."""
        names = [source.model for one in self.slices for source in one.sources]
        bases = [one.base_model for one in self.slices if one.base_model]
        return list(dict.fromkeys([*names, *bases]))

    def where(self, key: Key) -> str:
        """`file:line: key`, as far as it is known."""
        known = (self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines)
        line = next(known, 0)
        place = f"{self.file}:{line}" if line else self.file
        return f"{place}: {dotted(key)}" if key else place


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedModel:
    """One input of a merge."""

    model: str
    """a model folder or adapter folder, a hub id, stage:NAME, or embedded:smollm2-135m-instruct"""
    weight: float | None = None
    """its share, for methods that have weights; 1 when it is left out"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's other parameters of this model: numbers, gradients, filters"""

    def problems(self) -> list[tuple[str, str]]:
        if self.weight is not None and "weight" in self.parameters:
            return [("weight", "is given in parameters as well: keep one of the two")]
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeStage:
    """Checkpoints of one architecture, merged into one.

    linear with equal weights makes a soup. One model alone is copied, with its adapter folded in.
    """

    name: str
    """names the stage and its run directory"""
    models: tuple[MergedModel, ...]
    """the inputs; config, tokenizer and template come from the first one"""
    kind: Literal["merge"] = "merge"
    """what the stage does"""
    method: str = "linear"
    """how: linear, slerp, ties, dare_ties, ...; docs/merging.md has all of them"""
    base_model: str | None = None
    """the model that the others were made from, for methods that work on the changes"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters for all models: numbers, gradients, filters"""
    normalize: bool | None = None
    """divide the weights by their sum, so that they add up to 1; linear and ties do unless told"""
    dtype: Dtype = "input"
    """the type of the written weights; input: that of the inputs, which must agree"""
    config_from: str | None = None
    """the one of the models whose config, tokenizer settings and template win where they differ"""
    tokenizer_from: str | None = None
    """the one whose vocabulary, tokenizer settings and template win, when it isn't config_from"""

    def problems(self) -> list[tuple[str, str]]:
        if self.method not in METHODS:
            return [("method", f"unknown method {self.method!r}{nearest(self.method, [*METHODS])}")]
        if not self.models:
            return [("models", "expected at least one model, found none")]
        if self.normalize is not None and "normalize" in self.parameters:
            return [("normalize", "is given in parameters as well: keep one of the two")]
        return [(self._field(key), why) for key, why in merge_problems(self.merge())]

    def merge(self) -> Merge:
        """The stage in the form that is planned."""
        shared = dict(self.parameters)
        if self.normalize is not None:
            shared["normalize"] = self.normalize
        sources = tuple(
            Source(model=one.model, parameters=self._level(i)) for i, one in enumerate(self.models)
        )
        return Merge(
            file=self.name,
            method=self.method,
            slices=(
                Slice(
                    key=(), sources=sources, parameters=Level((), {}), base_model=self.base_model
                ),
            ),
            parameters=Level(("parameters",), shared),
            base_model=self.base_model,
            dtype=self.dtype,
            config_from=self.config_from,
            tokenizer_from=self.tokenizer_from,
        )

    def _level(self, place: int) -> Level:
        """The parameters of one model; a weight that isn't given is 1."""
        one = self.models[place]
        values = dict(one.parameters)
        weighs = "weight" in METHODS[self.method].each and one.model != self.base_model
        if one.weight is not None:
            values["weight"] = one.weight
        elif weighs and "weight" not in values and "weight" not in self.parameters:
            values["weight"] = 1.0
        return Level(("models", place, "parameters"), values)

    def _field(self, key: Key) -> str:
        """Where the stage says what the key of the merge says."""
        if (
            key[2:4] == ("parameters", "weight")
            and "weight" not in self.models[int(key[1])].parameters
        ):
            key = (*key[:2], "weight")
        if key == ("parameters", "normalize") and self.normalize is not None:
            key = ("normalize",)
        return ".".join(map(str, key))


def merge_problems(merge: Merge) -> list[tuple[Key, str]]:
    """What can be seen to be wrong before a model is opened, by key."""
    found = [
        ((*merge.parameters.key, *key), why)
        for key, why in problems(merge.method, merge.parameters.values, of_model=False)
    ]
    for one in merge.slices:
        found += [
            ((*one.parameters.key, *key), why)
            for key, why in problems(merge.method, one.parameters.values, of_model=False)
        ]
        found += _slice_problems(merge, one)
    names = merge.models()
    for key, value in _named_models(merge):
        if value is not None and value not in names:
            found.append((key, f"expected one of {', '.join(names)}, found {value!r}"))
    if merge.arithmetic is not None and merge.method not in COMPATIBLE:
        found.append(
            (
                ("merge_method",),
                f"--compat mergekit is there for {', '.join(COMPATIBLE)}, not for {merge.method}",
            )
        )
    return found or _weight_problems(merge)


def _named_models(merge: Merge) -> list[tuple[Key, str | None]]:
    """Where the config names a model that has to be one of those that are merged."""
    rows = merge.tokens.rows if merge.tokens else ()
    return [
        (("config_from",), merge.config_from),
        (("tokenizer_from",), merge.tokenizer_from),
        *((("tokenizer", "tokens", one.token, "source"), one.model) for one in rows),
    ]


def _slice_problems(merge: Merge, one: Slice) -> list[tuple[Key, str]]:
    method, place = METHODS[merge.method], one.key or ("models",)
    found: list[tuple[Key, str]] = []
    names = [source.model for source in one.sources]
    for source in one.sources:
        wrong = problems(merge.method, source.parameters.values, of_model=True)
        found += [((*source.parameters.key, *key), why) for key, why in wrong]
        if is_base(merge, one, source) and source.parameters.values:
            message = "has no effect: it is the base model, which isn't weighed"
            found.append((source.parameters.key, message))
    found += [
        (place, f"{name!r} is listed more than once: list it once with its whole weight")
        for name in sorted({name for name in names if names.count(name) > 1})
        if one.sources[0].layer_range is None
    ]
    if method.base == "required" and one.base_model is None:
        found.append((("base_model",), f"{merge.method} needs a base_model"))
    if method.base == "none" and one.base_model is not None and one.base_model not in names:
        found.append(
            (("base_model",), f"{merge.method} has no base: name one of the models, or remove it")
        )
    count = sum(not is_base(merge, one, source) for source in one.sources)
    if count < method.fewest or (method.most is not None and count > method.most):
        wanted = str(method.fewest) if method.most == method.fewest else _range(method)
        besides = " besides the base model" if one.base_model and method.base != "none" else ""
        found.append((place, f"{merge.method} takes {wanted}{besides}, found {count}"))
    return found


def _range(method: Any) -> str:
    if method.most is None:
        return f"at least {method.fewest} model{'s' if method.fewest > 1 else ''}"
    return f"{method.fewest} model{'s' if method.fewest > 1 else ''}"


def is_base(merge: Merge, one: Slice, source: Source) -> bool:
    """Whether a source is the base model, listed among the others."""
    return METHODS[merge.method].base != "none" and source.model == one.base_model


def _weight_problems(merge: Merge) -> list[tuple[Key, str]]:
    """Plain weights that can't be normalised; others are seen when they are known."""
    method = METHODS[merge.method]
    if "weight" not in method.each:
        return []
    for one in merge.slices:
        weights = [
            source.parameters.values.get("weight")
            for source in one.sources
            if not is_base(merge, one, source)
        ]
        if not all(isinstance(weight, int | float) for weight in weights):
            continue
        why = unusable([float(weight) for weight in weights if weight is not None])
        sums = merge.method == "linear" and merge.parameters.values.get("normalize", True)
        if why and (sums or not any(weights)):
            return [(one.key or ("models",), why)]
    return []


def unusable(weights: list[float]) -> str | None:
    """Why weights can't be divided by their sum, or can't be used at all."""
    if not any(weights):
        return f"expected a weight other than 0, found {weights}"
    # Beside the weights' own size, so that 0.1 + 0.2 - 0.3 counts as the 0 that was meant.
    if abs(math.fsum(weights)) <= 1e-9 * max(map(abs, weights)):
        return f"weights {weights} add up to 0, so they can't be normalised: set normalize: false"
    return None
