"""A merge, as a recipe's stage or mergekit's YAML describes it.

The stage is the short form; mergekit's YAML (`dualign.merging.mergekit.load`) is the long one. Both
become a `Merge`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.checkpoints.context import ContextConfig
from dualign.config import Key, dotted, nearest
from dualign.merging.methods.table import METHODS
from dualign.merging.parameters import Level, parameter_problems

Dtype = Literal["float32", "bfloat16", "float16", "input"]
_COMPATIBLE = ("linear", "slerp", "task_arithmetic")
"""methods that `--compat mergekit` can compute"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeSource:
    """One model of a merge, or a range of its layers."""

    model: str
    parameters: Level
    layer_range: tuple[int, int] | None = None
    """the layers [first, last); None: all"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeSlice:
    """Layers of the merged model, made from as many layers of each source."""

    key: Key
    sources: tuple[MergeSource, ...]
    parameters: Level
    base_model: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """Source of a token's embedding row for models that don't have the token."""

    token: str
    model: str | None = None
    """the model that has the row; None: a row of zeros"""
    row: str | int | None = None
    """another token of that model, or an id; None: the token itself"""
    force: bool = False
    """use it for models that have the token, too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyConfig:
    """Vocabulary of the merged model, unless it is simply that of one model."""

    union: bool = False
    """all tokens of all models"""
    rows: tuple[TokenRow, ...] = ()
    pad_to_multiple_of: int | None = None
    """give the embedding as few rows as that allows; None: as many as the tokenizer's model has"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """A merge, ready to be planned: every default of its form filled in."""

    file: str
    """where it is written, for messages"""
    lines: Mapping[Key, int] = field(default_factory=dict)
    method: str
    slices: tuple[MergeSlice, ...]
    parameters: Level
    base_model: str | None = None
    dtype: Dtype = "input"
    config_from: str | None = None
    tokenizer_from: str | None = None
    tokens: VocabularyConfig | None = None
    chat_template: str | None = None
    """a template's text in place of the tokenizer's; auto: the one that most models have"""
    allow_pickle: bool = False
    """read pytorch_model.bin if a model has no safetensors"""
    context: ContextConfig | None = None
    """stretch the positions of the result"""
    arithmetic: Dtype | None = None
    """compute as mergekit does, in this type (input: that of the tensors); None: in float64"""
    inner: Mapping[str, "Merge"] = field(default_factory=dict)
    """merges whose results are models of this one, by name"""
    strict: bool = True
    """refuse parameters that give no tensor its value; else they are warnings"""
    warnings: tuple[str, ...] = ()
    """what was written and has no effect, a line each"""

    def models(self) -> list[str]:
        """List each model once: the sources, then bases that aren't sources."""
        names = [source.model for slice_ in self.slices for source in slice_.sources]
        bases = [slice_.base_model for slice_ in self.slices if slice_.base_model]
        return list(dict.fromkeys([*names, *bases]))

    def location(self, key: Key) -> str:
        """Return `file:line: key` for a message; without the line if it isn't known."""
        known = (self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines)
        line = next(known, 0)
        place = f"{self.file}:{line}" if line else self.file
        return f"{place}: {dotted(key)}" if key else place


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeInput:
    """One input of a merge."""

    model: str
    """a model folder or adapter folder, a hub id, stage:NAME, or embedded:smollm2-135m-instruct"""
    weight: float | None = None
    """its share, for methods that have weights; default 1"""
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
    models: tuple[MergeInput, ...]
    """the inputs; config, tokenizer and template come from the first one"""
    kind: Literal["merge"] = "merge"
    """what the stage does"""
    method: str = "linear"
    """linear, slerp, ties, dare_ties, ...; docs/merging.md lists all of them"""
    base_model: str | None = None
    """the model that the others were made from, for methods that work on the changes"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters for all models: numbers, gradients, filters"""
    normalize: bool | None = None
    """divide the weights by their sum, so that they add up to 1; linear and ties do by default"""
    dtype: Dtype = "input"
    """the type of the written weights; input: that of the inputs, which must agree"""
    config_from: str | None = None
    """the model whose config, tokenizer settings and template win where the models differ"""
    tokenizer_from: str | None = None
    """the model whose vocabulary, tokenizer settings and template win, if it isn't config_from"""
    context: ContextConfig | None = None
    """stretch the positions of the result (docs/merging.md)"""

    def problems(self) -> list[tuple[str, str]]:
        if self.method not in METHODS:
            return [("method", f"unknown method {self.method!r}{nearest(self.method, [*METHODS])}")]
        if not self.models:
            return [("models", "expected at least one model, found none")]
        if self.normalize is not None and "normalize" in self.parameters:
            return [("normalize", "is given in parameters as well: keep one of the two")]
        return [(self._field(key), why) for key, why in merge_problems(self.merge())]

    def merge(self) -> Merge:
        """Return the stage in the form that is planned."""
        parameters = dict(self.parameters)
        if self.normalize is not None:
            parameters["normalize"] = self.normalize
        sources = tuple(
            MergeSource(model=model.model, parameters=self._model_level(i))
            for i, model in enumerate(self.models)
        )
        whole = MergeSlice(
            key=(), sources=sources, parameters=Level((), {}), base_model=self.base_model
        )
        return Merge(
            file=self.name,
            method=self.method,
            slices=(whole,),
            parameters=Level(("parameters",), parameters),
            base_model=self.base_model,
            dtype=self.dtype,
            config_from=self.config_from,
            tokenizer_from=self.tokenizer_from,
            context=self.context,
        )

    def _model_level(self, index: int) -> Level:
        """Return the parameters of one model; its weight is 1 if it isn't given."""
        model = self.models[index]
        values = dict(model.parameters)
        weighted = "weight" in METHODS[self.method].per_model and model.model != self.base_model
        if model.weight is not None:
            values["weight"] = model.weight
        elif weighted and "weight" not in values and "weight" not in self.parameters:
            values["weight"] = 1.0
        return Level(("models", index, "parameters"), values)

    def _field(self, key: Key) -> str:
        """Map a key of the merge to the stage's: models.0.parameters.weight -> models.0.weight."""
        if (
            key[2:4] == ("parameters", "weight")
            and "weight" not in self.models[int(key[1])].parameters
        ):
            key = (*key[:2], "weight")
        if key == ("parameters", "normalize") and self.normalize is not None:
            key = ("normalize",)
        return ".".join(map(str, key))


def merge_problems(merge: Merge) -> list[tuple[Key, str]]:
    """Check a merge without opening a model; return (key, problem)."""
    issues = _level_problems(merge, merge.parameters)
    for slice_ in merge.slices:
        issues += _level_problems(merge, slice_.parameters)
        issues += _slice_problems(merge, slice_)
    names = merge.models()
    for key, value in _model_references(merge):
        if value is not None and value not in names:
            issues.append((key, f"expected one of {', '.join(names)}, found {value!r}"))
    if merge.arithmetic is not None and merge.method not in _COMPATIBLE:
        issues.append(
            (
                ("merge_method",),
                f"--compat mergekit is there for {', '.join(_COMPATIBLE)}, not for {merge.method}",
            )
        )
    return issues or _weight_problems(merge)


def _level_problems(merge: Merge, level: Level, *, of_model: bool = False) -> list[tuple[Key, str]]:
    issues = parameter_problems(merge.method, level.values, of_model=of_model)
    return [((*level.key, *key), why) for key, why in issues]


def _model_references(merge: Merge) -> list[tuple[Key, str | None]]:
    """List the keys that name a model, which must be one of those that are merged."""
    rows = merge.tokens.rows if merge.tokens else ()
    return [
        (("config_from",), merge.config_from),
        (("tokenizer_from",), merge.tokenizer_from),
        *((("tokenizer", "tokens", row.token, "source"), row.model) for row in rows),
    ]


def _slice_problems(merge: Merge, slice_: MergeSlice) -> list[tuple[Key, str]]:
    method, key = METHODS[merge.method], slice_.key or ("models",)
    issues: list[tuple[Key, str]] = []
    names = [source.model for source in slice_.sources]
    for source in slice_.sources:
        issues += _level_problems(merge, source.parameters, of_model=True)
        if is_base(merge, slice_, source) and source.parameters.values:
            message = "has no effect: it is the base model, which isn't weighed"
            issues.append((source.parameters.key, message))
    issues += [
        (key, f"{name!r} is listed more than once: list it once with its whole weight")
        for name in sorted({name for name in names if names.count(name) > 1})
        if slice_.sources[0].layer_range is None
    ]
    if method.base == "required" and slice_.base_model is None:
        issues.append((("base_model",), f"{merge.method} needs a base_model"))
    if method.base == "none" and slice_.base_model is not None and slice_.base_model not in names:
        issues.append(
            (("base_model",), f"{merge.method} has no base: name one of the models, or remove it")
        )
    count = sum(not is_base(merge, slice_, source) for source in slice_.sources)
    low, high = method.min_models, method.max_models
    if count < low or (high is not None and count > high):
        expected = str(low) if low == high else f"{low} to {high}"
        if high is None:
            expected = f"at least {low} model{'s' if low > 1 else ''}"
        besides = " besides the base model" if slice_.base_model and method.base != "none" else ""
        issues.append((key, f"{merge.method} takes {expected}{besides}, found {count}"))
    return issues


def is_base(merge: Merge, slice_: MergeSlice, source: MergeSource) -> bool:
    """Return whether a source is the base model, listed among the others."""
    return METHODS[merge.method].base != "none" and source.model == slice_.base_model


def _weight_problems(merge: Merge) -> list[tuple[Key, str]]:
    """Check weights that are plain numbers; gradients and filters are checked for each tensor."""
    if "weight" not in METHODS[merge.method].per_model:
        return []
    for slice_ in merge.slices:
        weights = [
            source.parameters.values.get("weight")
            for source in slice_.sources
            if not is_base(merge, slice_, source)
        ]
        if not all(isinstance(weight, int | float) for weight in weights):
            continue
        why = weight_problem([float(weight) for weight in weights if weight is not None])
        normalized = merge.method == "linear" and merge.parameters.values.get("normalize", True)
        if why and (normalized or not any(weights)):
            return [(slice_.key or ("models",), why)]
    return []


def weight_problem(weights: list[float]) -> str | None:
    """Say why weights can't be divided by their sum, or can't be used at all; None if they can."""
    if not any(weights):
        return f"expected a weight other than 0, found {weights}"
    # Relative to the weights' own size, so that 0.1 + 0.2 - 0.3 counts as 0.
    if abs(math.fsum(weights)) <= 1e-9 * max(map(abs, weights)):
        return f"weights {weights} add up to 0, so they can't be normalized: set normalize: false"
    return None
