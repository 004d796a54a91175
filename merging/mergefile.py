"""mergekit's YAML, read as it is, and strictly: what is unknown or does nothing is an error.

    merge_method: ties
    base_model: org/base@revision          # a folder, a hub id, base+adapter
    models:                                # or slices: [{sources: [{model, layer_range}, ...]}, ...]
      - {model: ./a, parameters: {weight: 0.5, density: [1, 0.5]}}
      - {model: ./b, parameters: {weight: [{filter: mlp, value: 0.3}, {value: 0.5}]}}
    dtype: bfloat16
    config_from: ./a                       # ours: who decides where the models differ

Several documents in one file are merges of merges: each but the last has a `name`, which the later
ones use as a model. They are computed in one pass; nothing between is written or rounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dualign.config import Document, Key, nearest, parse, read_documents
from dualign.errors import ConfigError
from dualign.merging.catalogue import METHODS
from dualign.merging.config import Dtype, Merge, Slice, Source, merge_problems
from dualign.merging.parameters import Level

FloatType = Literal["float32", "bfloat16", "float16"]
_WIDTHS = {"float32": 32, "bfloat16": 16, "float16": 16}
# What mergekit reads and this doesn't, and what to do about it.
_ELSEWHERE = {
    "modules": "models of several modules can't be merged yet; merge the language model alone",
    "tokenizer": "tokenizers can't be put together yet; set tokenizer_from to one of the models",
}


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
    """[first, last): the layers that are taken"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters of this model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSlice:
    """Some layers of the merged model."""

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
    """what later documents of the file call the result"""
    base_model: str | FileReference | None = None
    """the model that the others were made from"""
    models: tuple[FileModel, ...] | None = None
    """whole models"""
    slices: tuple[FileSlice, ...] | None = None
    """ranges of layers, in the order of the merged model"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """the method's parameters"""
    dtype: FloatType | None = None
    """the type of the written weights, when out_dtype isn't given; sums are always float64"""
    out_dtype: FloatType | None = None
    """the type of the written weights"""
    tokenizer_source: str | None = None
    """base, or the model whose tokenizer is copied"""
    chat_template: str | None = None
    """a jinja template in place of that of the tokenizer"""
    config_from: str | None = None
    """the model whose config, tokenizer settings and template win where they differ"""
    tokenizer_from: str | None = None
    """the one whose tokenizer settings and template win, when it isn't config_from"""

    def problems(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if self.merge_method not in METHODS:
            hint = nearest(self.merge_method, [*METHODS])
            found.append(("merge_method", f"unknown method {self.merge_method!r}{hint}"))
        if (self.models is None) == (self.slices is None):
            found.append(("", "expected models or slices, one of the two"))
        if self.models == () or self.slices == ():
            found.append(("models" if self.models == () else "slices", "expected one at least"))
        found += self._dtype_problems()
        if self.tokenizer_source == "union":
            found.append(("tokenizer_source", "union can't be built yet; name one of the models"))
        if self.tokenizer_source is not None and self.tokenizer_from is not None:
            found.append(("tokenizer_source", "says the same as tokenizer_from: keep one of them"))
        if self.chat_template is not None and "{" not in self.chat_template:
            message = "expected a jinja template; to take a model's, set tokenizer_from"
            found.append(("chat_template", message))
        return found + self._slice_problems()

    def _dtype_problems(self) -> list[tuple[str, str]]:
        narrow = self.dtype and self.out_dtype and _WIDTHS[self.dtype] < _WIDTHS[self.out_dtype]
        if not narrow:
            return []
        return [
            (
                "dtype",
                f"has no effect: sums are float64, and {self.out_dtype} is written; remove it",
            )
        ]

    def _slice_problems(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for i, one in enumerate(self.slices or ()):
            if not one.sources:
                found.append((f"slices.{i}.sources", "expected one at least"))
            for j, source in enumerate(one.sources):
                if source.layer_range is None or len(source.layer_range) != 2:
                    key = f"slices.{i}.sources.{j}.layer_range"
                    found.append((key, "expected [first, last], the layer after the last one"))
        return found


def load(path: Path, *, compat: bool = False) -> Merge:
    """The merge that a file describes; with `compat` in mergekit's arithmetic.

    Raises:
        ConfigError: with every problem of the file.
    """
    documents = read_documents(path)
    named: dict[str, Merge] = {}
    for number, document in enumerate(documents):
        file = _parsed(document)
        last = number == len(documents) - 1
        if file is not None:
            if (file.name is None) is not last:
                wanted = (
                    "the last document is the result: remove name"
                    if last
                    else ("needs the key 'name', by which later documents use it")
                )
                document.refuse(("name",) if file.name else (), wanted)
            merge = _merge(file, document, path.parent, named)
            if compat:
                merge = replace(merge, arithmetic=file.dtype or "input")
            for key, message in merge_problems(merge):
                document.refuse(key, message)
            named[file.name or ""] = merge
    _raise_all(documents)
    _require_all_used(documents, named)
    return named[""]


def is_merge_file(path: Path) -> bool:
    """Whether a YAML file is a merge in mergekit's form, not a recipe."""
    return path.is_file() and any("merge_method" in one.value for one in read_documents(path))


def _parsed(document: Document) -> MergeFile | None:
    for key, advice in _ELSEWHERE.items():
        if key in document.value:
            document.refuse((key,), advice)
            document.value = {name: one for name, one in document.value.items() if name != key}
    for key in ("normalize", "weight", "density", "t", "lambda", "int8_mask", "rescale"):
        if key in document.value:
            document.refuse((key,), f"has no effect here: put it under parameters, as {key}")
            document.value = {name: one for name, one in document.value.items() if name != key}
    made = parse(MergeFile, document.value, document)
    return made if not document.problems else None


def _merge(file: MergeFile, document: Document, folder: Path, named: Mapping[str, Merge]) -> Merge:
    def place(reference: str | FileReference | FilePath | None) -> str | None:
        return None if reference is None else _reference(reference, folder, named)

    base = place(file.base_model)
    merge = Merge(
        file=document.file,
        lines=document.lines,
        method=file.merge_method,
        slices=_slices(file, folder, named, base),
        parameters=Level(("parameters",), file.parameters),
        base_model=base,
        dtype=_dtype(file),
        config_from=place(file.config_from),
        tokenizer_from=place(file.tokenizer_from),
        chat_template=file.chat_template,
    )
    inner = {name: named[name] for name in merge.models() if name in named}
    tokenizer = merge.tokenizer_from
    if file.tokenizer_source is not None:
        tokenizer = base if file.tokenizer_source == "base" else place(file.tokenizer_source)
        if tokenizer is None:
            document.refuse(("tokenizer_source",), "base, but no base_model is given")
    return replace(merge, tokenizer_from=tokenizer, inner=inner)


def _dtype(file: MergeFile) -> Dtype:
    return file.out_dtype or file.dtype or "input"


def _slices(
    file: MergeFile, folder: Path, named: Mapping[str, Merge], base: str | None
) -> tuple[Slice, ...]:
    if file.models is not None:
        sources = tuple(
            Source(
                model=_reference(one.model, folder, named),
                parameters=Level(("models", i, "parameters"), one.parameters),
            )
            for i, one in enumerate(file.models)
        )
        return (Slice(key=(), sources=sources, parameters=Level((), {}), base_model=base),)
    return tuple(
        Slice(
            key=("slices", i),
            sources=_sources(one, ("slices", i, "sources"), folder, named),
            parameters=Level(("slices", i, "parameters"), one.parameters),
            base_model=base
            if one.base_model is None
            else _reference(one.base_model, folder, named),
        )
        for i, one in enumerate(file.slices or ())
    )


def _sources(
    one: FileSlice, key: Key, folder: Path, named: Mapping[str, Merge]
) -> tuple[Source, ...]:
    return tuple(
        Source(
            model=_reference(source.model, folder, named),
            parameters=Level((*key, j, "parameters"), source.parameters),
            layer_range=(source.layer_range[0], source.layer_range[1])
            if source.layer_range is not None and len(source.layer_range) == 2
            else None,
        )
        for j, source in enumerate(one.sources)
    )


def _reference(
    reference: str | FileReference | FilePath, folder: Path, named: Mapping[str, Merge]
) -> str:
    """`path@revision+adapter`, with paths beside the file made absolute."""
    if isinstance(reference, FileReference):
        model = _reference(reference.model, folder, named)
        return (
            model
            if reference.lora is None
            else (f"{model}+{_reference(reference.lora, folder, named)}")
        )
    if isinstance(reference, FilePath):
        path = _beside(reference.path, folder)
        return path if reference.revision is None else f"{path}@{reference.revision}"
    if reference in named:
        return reference
    if _is_here(reference, folder) or "+" not in reference:
        return _beside(reference, folder)
    return "+".join(_beside(part, folder) for part in reference.split("+"))


def _is_here(name: str, folder: Path) -> bool:
    return (folder / name).exists() or Path(name).exists()


def _beside(name: str, folder: Path) -> str:
    """Paths are seen from the file's folder, then, as mergekit does, from the working directory."""
    found = folder / Path(name).expanduser()
    return str(found.absolute()) if found.is_dir() else name


def _raise_all(documents: list[Document]) -> None:
    whole = Document(file=documents[0].file)
    whole.problems = [problem for one in documents for problem in one.problems]
    whole.raise_problems()


def _require_all_used(documents: list[Document], named: Mapping[str, Merge]) -> None:
    used = {name for merge in named.values() for name in merge.inner}
    for name in named:
        if name and name not in used:
            raise ConfigError(f"{documents[0].file}: {name!r} is merged, but nothing uses it")
