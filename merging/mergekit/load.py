"""Read mergekit's YAML: an unknown key is an error, a known one without effect is a warning.

    merge_method: ties
    base_model: org/base@revision     # a folder, a hub id, base+adapter
    models:                           # or slices: [{sources: [{model, layer_range}, ...]}, ...]
      - {model: ./a, parameters: {weight: 0.5, density: [1, 0.5]}}
      - {model: ./b, parameters: {weight: [{filter: mlp, value: 0.3}, {value: 0.5}]}}
    dtype: bfloat16
    config_from: ./a                  # not mergekit's: the model whose config wins

Several documents in one file are merges of merges: each but the last has a `name`, which later
documents use as a model. They are computed in one pass; intermediate results aren't written or
rounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dualign.config import Document, Key, parse, read_documents
from dualign.errors import ConfigError
from dualign.merging.config import (
    Merge,
    MergeSlice,
    MergeSource,
    TokenRow,
    VocabularyConfig,
    merge_problems,
)
from dualign.merging.mergekit.schema import (
    FilePath,
    FileReference,
    FileRow,
    FileSlice,
    FileToken,
    MergeFile,
)
from dualign.merging.mergekit.unused import Unused, take_out_keys, take_out_parameters
from dualign.merging.parameters import Level

# Keys of mergekit that dualign doesn't read, and what to do about them.
_UNSUPPORTED = {
    "modules": "which tensors a module has is only known for the architectures that mergekit lists, "
    "and here none is known by name; use models or slices: they merge every tensor of a checkpoint, "
    "and `parameters` with a filter set a part of it (filter: vision_tower)",
}


def load(path: Path, *, compat: bool = False, strict: bool = False) -> Merge:
    """Return the merge that a file describes; with `compat` in mergekit's arithmetic.

    Args:
        strict: refuse keys that mergekit knows and that have no effect; else they are warnings.

    Raises:
        ConfigError: lists every problem of the file.
    """
    return parse_documents(read_documents(path), path.parent, compat=compat, strict=strict)


def parse_documents(
    documents: list[Document], folder: Path, *, compat: bool = False, strict: bool = False
) -> Merge:
    """Return the merge that documents describe; their relative paths start at `folder`.

    Raises:
        ConfigError: lists every problem of the documents.
    """
    merges: dict[str, Merge] = {}
    for number, document in enumerate(documents):
        name, merge = _document(
            document, _Resolver(folder, merges), strict=strict, is_last=number == len(documents) - 1
        )
        if merge is not None:
            if compat:
                merge = replace(merge, arithmetic=document.value.get("dtype") or "input")
            for key, message in merge_problems(merge):
                document.refuse(key, message)
            merges[name] = merge
    whole = Document(file=documents[0].file)
    whole.problems = [problem for document in documents for problem in document.problems]
    whole.raise_problems()
    used = {name for merge in merges.values() for name in merge.inner}
    for name in merges:
        if name and name not in used:
            raise ConfigError(f"{documents[0].file}: {name!r} is merged, but nothing uses it")
    return merges[""]


def allow_pickles(merge: Merge) -> Merge:
    """Return the merge, and those inside of it, with `allow_pickle`."""
    inner = {name: allow_pickles(part) for name, part in merge.inner.items()}
    return replace(merge, allow_pickle=True, inner=inner)


def is_merge_file(path: Path) -> bool:
    """Return whether a YAML file is a merge in mergekit's form, not a recipe."""
    return path.is_file() and any(
        "merge_method" in document.value for document in read_documents(path)
    )


def _document(
    document: Document, resolver: "_Resolver", *, strict: bool, is_last: bool
) -> tuple[str, Merge | None]:
    """Return a document's name, empty for the result, and its merge; None if it has problems."""
    for key, message in _UNSUPPORTED.items():
        if isinstance(document.value, dict) and key in document.value:
            document.refuse((key,), message)
            document.value = {name: item for name, item in document.value.items() if name != key}
    unused: Unused = []
    if isinstance(document.value, dict):
        unused = take_out_keys(document)
        if (document.value.get("models") is None) == (document.value.get("slices") is None):
            document.refuse((), "expected models or slices, one of the two")
    file = parse(MergeFile, document.value, document)
    if file is None or document.problems:
        return "", None
    if file.name is None and not is_last:
        document.refuse((), "needs the key 'name', by which later documents use it")
    if file.name is not None and is_last:
        unused.append((("name",), "has no effect: the last document is the result"))
    merge, ineffective = take_out_parameters(_merge(file, document, resolver))
    unused += ineffective
    if strict:
        for place, why in unused:
            document.refuse(place, f"{why} (--strict)")
    lines = tuple(f"{merge.location(place)}: {why}" for place, why in unused)
    name = "" if is_last else file.name or ""
    return name, replace(merge, strict=strict, warnings=lines)


@dataclass(frozen=True, slots=True)
class _Resolver:
    """Turns the model references of a file into names that `open_weights` takes."""

    folder: Path
    """of the file"""
    merges: Mapping[str, Merge]
    """of the documents before, by name"""

    def resolve(self, reference: str | FileReference | FilePath) -> str:
        """Return `path@revision+adapter`; paths relative to the file become absolute."""
        if isinstance(reference, FileReference):
            model = self.resolve(reference.model)
            return model if reference.lora is None else f"{model}+{self.resolve(reference.lora)}"
        if isinstance(reference, FilePath):
            path = self._path(reference.path)
            return path if reference.revision is None else f"{path}@{reference.revision}"
        if reference in self.merges:
            return reference
        exists = (self.folder / reference).exists() or Path(reference).exists()
        if exists or "+" not in reference:
            return self._path(reference)
        return "+".join(self._path(part) for part in reference.split("+"))

    def _path(self, name: str) -> str:
        """Look in the file's folder first, then, as mergekit does, in the working directory."""
        path = self.folder / Path(name).expanduser()
        return str(path.absolute()) if path.is_dir() else name


def _merge(file: MergeFile, document: Document, resolver: _Resolver) -> Merge:
    def resolve(reference: str | FileReference | FilePath | None) -> str | None:
        return None if reference is None else resolver.resolve(reference)

    base = resolve(file.base_model)
    merge = Merge(
        file=document.file,
        lines=document.lines,
        method=file.merge_method,
        slices=_slices(file, resolver, base),
        parameters=Level(("parameters",), file.parameters),
        base_model=base,
        dtype=file.out_dtype or file.dtype or "input",
        config_from=resolve(file.config_from),
        tokenizer_from=resolve(file.tokenizer_from),
        chat_template=file.chat_template,
        allow_pickle=file.allow_pickle,
    )
    inner = {name: resolver.merges[name] for name in merge.models() if name in resolver.merges}
    key = "tokenizer_source" if file.tokenizer is None else "tokenizer"
    source = file.tokenizer_source if file.tokenizer is None else file.tokenizer.source
    tokenizer = merge.tokenizer_from
    if isinstance(source, str):
        source = source.removeprefix("model:")  # mergekit's form until 2024
    if source not in (None, "union"):
        tokenizer = base if source == "base" else resolve(source)
        names = merge.models()
        if tokenizer is None:
            document.refuse((key,), "base, but no base_model is given")
        elif tokenizer not in names:
            listed = ", ".join(names)
            document.refuse((key,), f"expected union, base or one of {listed}, found {tokenizer!r}")
            tokenizer = None
    tokens = None if source is None else _vocabulary(file, resolver)
    return replace(merge, tokenizer_from=tokenizer, tokens=tokens, inner=inner)


def _vocabulary(file: MergeFile, resolver: _Resolver) -> VocabularyConfig:
    if file.tokenizer is None:
        return VocabularyConfig(union=file.tokenizer_source == "union")
    tokens = file.tokenizer.tokens.items()
    return VocabularyConfig(
        union=file.tokenizer.source == "union",
        rows=tuple(_token_row(name, token, resolver) for name, token in tokens),
        pad_to_multiple_of=file.tokenizer.pad_to_multiple_of,
    )


def _token_row(name: str, token: FileToken, resolver: _Resolver) -> TokenRow:
    source = FileRow(model=token.source) if isinstance(token.source, str) else token.source
    if source.model is None:
        return TokenRow(token=name, force=token.force)
    return TokenRow(
        token=name,
        model=resolver.resolve(FileReference(model=source.model, lora=source.lora)),
        row=source.token if source.token_id is None else source.token_id,
        force=token.force,
    )


def _slices(file: MergeFile, resolver: _Resolver, base: str | None) -> tuple[MergeSlice, ...]:
    if file.models is not None:
        sources = tuple(
            MergeSource(
                model=resolver.resolve(model.model),
                parameters=Level(("models", i, "parameters"), model.parameters),
            )
            for i, model in enumerate(file.models)
        )
        return (MergeSlice(key=(), sources=sources, parameters=Level((), {}), base_model=base),)
    return tuple(
        MergeSlice(
            key=("slices", i),
            sources=_sources(slice_, ("slices", i, "sources"), resolver),
            parameters=Level(("slices", i, "parameters"), slice_.parameters),
            base_model=base if slice_.base_model is None else resolver.resolve(slice_.base_model),
        )
        for i, slice_ in enumerate(file.slices or ())
    )


def _sources(slice_: FileSlice, key: Key, resolver: _Resolver) -> tuple[MergeSource, ...]:
    return tuple(
        MergeSource(
            model=resolver.resolve(source.model),
            parameters=Level((*key, i, "parameters"), source.parameters),
            layer_range=(source.layer_range[0], source.layer_range[1])
            if source.layer_range is not None and len(source.layer_range) == 2
            else None,
        )
        for i, source in enumerate(slice_.sources)
    )
