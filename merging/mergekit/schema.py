"""mergekit's YAML as dataclasses: every key, and the checks that need no other file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.config import nearest
from dualign.merging.methods.table import METHODS
from dualign.merging.tokenizer.chat_template import template_problem

FloatType = Literal["float32", "bfloat16", "float16"]
_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePath:
    """A model with a revision."""

    path: str
    """a folder or a hub id"""
    revision: str | None = None
    """a branch, tag or commit of the hub id"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileReference:
    """A model and an adapter on it."""

    model: str | FilePath
    """the model"""
    lora: str | FilePath | None = None
    """an adapter that is folded into it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """Source of a token's row: a model, another token of a model, or zeros."""

    kind: Literal["zero", "model_token"] | None = None
    """zero, or model_token; None: the row that the model has for this token"""
    model: str | FilePath | None = None
    """the model"""
    lora: str | FilePath | None = None
    """the adapter on it, named as in `models`"""
    token: str | None = None
    """model_token: the token whose row is taken"""
    token_id: int | None = None
    """model_token: the same by its id"""

    def problems(self) -> list[tuple[str, str]]:
        named = [key for key in ("token", "token_id") if getattr(self, key) is not None]
        if self.kind == "zero":
            unused = [key for key in ("model", "lora") if getattr(self, key) is not None] + named
            return [(key, "has no effect on a row of zeros") for key in unused]
        issues = [] if self.model is not None else [("", "needs the key 'model'")]
        if self.kind == "model_token" and len(named) != 1:
            issues.append(("", "needs token or token_id, one of the two"))
        if self.kind is None:
            issues += [(key, "needs kind: model_token beside it") for key in named]
        return issues


@dataclass(frozen=True, kw_only=True, slots=True)
class FileToken:
    """One entry of `tokenizer.tokens`."""

    source: str | FileRow
    """a model, {kind: zero}, or {kind: model_token, model, token or token_id}"""
    force: bool = False
    """use it in models that have the token, too"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTokenizer:
    """Vocabulary of the result."""

    source: str | FileReference = "union"
    """union, base, or a model"""
    tokens: Mapping[str, FileToken] = field(default_factory=dict)
    """rows of single tokens; tokens that no model has are added"""
    pad_to_multiple_of: int | None = None
    """as few rows as this allows; None: as many as the model whose tokenizer it is"""

    def problems(self) -> list[tuple[str, str]]:
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            return [("pad_to_multiple_of", f"expected 1 or more, found {self.pad_to_multiple_of}")]
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class FileModel:
    """One entry of `models`."""

    model: str | FileReference
    """a folder, a hub id, hub-id@revision, or model+adapter"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters of this model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSource:
    """One entry of a slice's `sources`."""

    model: str | FileReference
    """a folder, a hub id, hub-id@revision, or model+adapter"""
    layer_range: tuple[int, ...] | None = None
    """the layers [first, last)"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters of this model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSlice:
    """Layers of the merged model."""

    sources: tuple[FileSource, ...]
    """as many layers of each"""
    base_model: str | FileReference | None = None
    """the base of this slice"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters in this slice"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeFile:
    """One document."""

    merge_method: str
    """linear, slerp, ties, ..."""
    name: str | None = None
    """the name of the result in later documents of the file"""
    base_model: str | FileReference | None = None
    """the model that the others were made from"""
    models: tuple[FileModel, ...] | None = None
    """whole models"""
    slices: tuple[FileSlice, ...] | None = None
    """ranges of layers, in the order of the merged model"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters"""
    dtype: FloatType | None = None
    """the type of the written weights, without out_dtype; sums are always float64"""
    out_dtype: FloatType | None = None
    """the type of the written weights"""
    tokenizer_source: str | None = None
    """vocabulary of the result: union, base, or a model's; rows go by token"""
    tokenizer: FileTokenizer | None = None
    """the same with rows of single tokens"""
    chat_template: str | None = None
    """auto (the one that most models have), chatml, or a jinja template"""
    allow_pickle: bool = False
    """read pytorch_model.bin if a model has no safetensors; loads nothing but tensors"""
    config_from: str | None = None
    """the model whose config, tokenizer settings and template win where they differ"""
    tokenizer_from: str | None = None
    """the one whose vocabulary, tokenizer settings and template win, when it isn't config_from"""

    def problems(self) -> list[tuple[str, str]]:
        issues: list[tuple[str, str]] = []
        if self.merge_method not in METHODS:
            hint = nearest(self.merge_method, [*METHODS])
            issues.append(("merge_method", f"unknown method {self.merge_method!r}{hint}"))
        if self.models == () or self.slices == ():
            issues.append(("models" if self.models == () else "slices", "expected one at least"))
        issues += self._dtype_problems()
        issues += self._tokenizer_problems()
        why = None if self.chat_template is None else template_problem(self.chat_template)
        if why is not None:
            issues.append(("chat_template", why))
        return issues + self._slice_problems()

    def _tokenizer_problems(self) -> list[tuple[str, str]]:
        sources: dict[str, str | FileReference | None] = {"tokenizer_source": self.tokenizer_source}
        if self.tokenizer is not None:
            sources["tokenizer"] = self.tokenizer.source
        sources = {key: source for key, source in sources.items() if source is not None}
        if len(sources) > 1:
            return [("tokenizer", "says the same as tokenizer_source: keep one of them")]
        # With a union, tokenizer_from names the model whose ids and settings it starts from.
        return [
            (key, "says the same as tokenizer_from: keep one of them")
            for key, source in sources.items()
            if source != "union" and self.tokenizer_from is not None
        ]

    def _dtype_problems(self) -> list[tuple[str, str]]:
        if self.dtype and self.out_dtype and _BITS[self.dtype] < _BITS[self.out_dtype]:
            why = f"has no effect: sums are float64, and {self.out_dtype} is written; remove it"
            return [("dtype", why)]
        return []

    def _slice_problems(self) -> list[tuple[str, str]]:
        issues: list[tuple[str, str]] = []
        for i, slice_ in enumerate(self.slices or ()):
            if not slice_.sources:
                issues.append((f"slices.{i}.sources", "expected one at least"))
            for j, source in enumerate(slice_.sources):
                if source.layer_range is None or len(source.layer_range) != 2:
                    key = f"slices.{i}.sources.{j}.layer_range"
                    issues.append((key, "expected [first, last], the layer after the last one"))
        return issues
