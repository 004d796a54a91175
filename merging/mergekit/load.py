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
from dataclasses import replace
from pathlib import Path

from dualign.config import Document, Key, parse, read_documents
from dualign.errors import ConfigError
from dualign.merging.config import (
    Dtype,
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
from dualign.merging.parameters import Level

# What mergekit reads and this doesn't, and what to do about it.
_ELSEWHERE = {
    "modules": "which tensors a module has is only known for the architectures that mergekit lists, "
    "and here none is known by name; use models or slices: they merge every tensor of a checkpoint, "
    "and `parameters` with a filter set a part of it (filter: vision_tower)",
}


def load(path: Path, *, compat: bool = False) -> Merge:
    """The merge that a file describes; with `compat` in mergekit's arithmetic.

    Raises:
        ConfigError: with every problem of the file.
    """
    return merged(read_documents(path), path.parent, compat=compat)


def merged(documents: list[Document], folder: Path, *, compat: bool = False) -> Merge:
    """The merge that documents describe; their relative paths are seen from `folder`.

    Raises:
        ConfigError: with every problem of the documents.
    """
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
            merge = _merge(file, document, folder, named)
            if compat:
                merge = replace(merge, arithmetic=file.dtype or "input")
            for key, message in merge_problems(merge):
                document.refuse(key, message)
            named[file.name or ""] = merge
    _raise_all(documents)
    _require_all_used(documents, named)
    return named[""]


def allowing_pickles(merge: Merge) -> Merge:
    """The merge, and those inside of it, with `allow_pickle`."""
    inner = {name: allowing_pickles(one) for name, one in merge.inner.items()}
    return replace(merge, allow_pickle=True, inner=inner)


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
        allow_pickle=file.allow_pickle,
    )
    inner = {name: named[name] for name in merge.models() if name in named}
    key = "tokenizer_source" if file.tokenizer is None else "tokenizer"
    source = file.tokenizer_source if file.tokenizer is None else file.tokenizer.source
    tokenizer = merge.tokenizer_from
    if source not in (None, "union"):
        tokenizer = base if source == "base" else place(source)
        if tokenizer is None:
            document.refuse((key,), "base, but no base_model is given")
        elif tokenizer not in merge.models():
            names = ", ".join(merge.models())
            document.refuse((key,), f"expected union, base or one of {names}, found {tokenizer!r}")
            tokenizer = None
    tokens = _tokens(file, folder, named) if source is not None else None
    return replace(merge, tokenizer_from=tokenizer, tokens=tokens, inner=inner)


def _tokens(file: MergeFile, folder: Path, named: Mapping[str, Merge]) -> VocabularyConfig:
    if file.tokenizer is None:
        return VocabularyConfig(union=file.tokenizer_source == "union")
    return VocabularyConfig(
        union=file.tokenizer.source == "union",
        rows=tuple(
            _token_row(token, one, folder, named) for token, one in file.tokenizer.tokens.items()
        ),
        pad_to_multiple_of=file.tokenizer.pad_to_multiple_of,
    )


def _token_row(token: str, one: FileToken, folder: Path, named: Mapping[str, Merge]) -> TokenRow:
    source = FileRow(model=one.source) if isinstance(one.source, str) else one.source
    if source.model is None:
        return TokenRow(token=token, force=one.force)
    reference = FileReference(model=source.model, lora=source.lora)
    return TokenRow(
        token=token,
        model=_reference(reference, folder, named),
        row=source.token if source.token_id is None else source.token_id,
        force=one.force,
    )


def _dtype(file: MergeFile) -> Dtype:
    return file.out_dtype or file.dtype or "input"


def _slices(
    file: MergeFile, folder: Path, named: Mapping[str, Merge], base: str | None
) -> tuple[MergeSlice, ...]:
    if file.models is not None:
        sources = tuple(
            MergeSource(
                model=_reference(one.model, folder, named),
                parameters=Level(("models", i, "parameters"), one.parameters),
            )
            for i, one in enumerate(file.models)
        )
        return (MergeSlice(key=(), sources=sources, parameters=Level((), {}), base_model=base),)
    return tuple(
        MergeSlice(
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
) -> tuple[MergeSource, ...]:
    return tuple(
        MergeSource(
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
