"""The reference of recipe keys, read from the dataclasses: name, type, default, and field docstring."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dualign.config import named


def key_list(kinds: Mapping[str, type]) -> str:
    """Return each kind and its keys as nested Markdown lists; shared keys are listed once."""
    listed: dict[type, str] = {}
    parts = [
        f"## {kind}\n\n{_first_line(cls)}\n\n" + "\n".join(_lines(cls, kind, listed))
        for kind, cls in kinds.items()
    ]
    return "\n\n".join(parts)


def _lines(cls: type, kind: str, listed: dict[type, str], indent: str = "") -> Iterator[str]:
    hints, docs = get_type_hints(cls, include_extras=True), _field_docs(cls)
    for field in fields(cls):
        if field.name == "kind":
            continue  # it is the heading
        inners = _inners(hints[field.name])
        if len(inners) > 1:
            yield from _kind_lines(inners, field, hints[field.name], docs[field.name], indent)
            continue
        inner = inners[0] if inners else None
        above = listed.get(inner) if inner else None
        keys = f"keys as in {above}" if above else ""
        shape = _beside_keys(hints[field.name], keys) if inner else _shape(hints[field.name])
        details = ", ".join(filter(None, [shape, _default(field)]))
        yield f"{indent}- `{field.name}`{f' ({details})' if details else ''}: {docs[field.name]}"
        if inner and not above:
            listed[inner] = kind
            yield from _lines(inner, kind, listed, f"{indent}  ")


def _kind_lines(
    kinds: list[type], field: Field[Any], expected: Any, about: str, indent: str
) -> Iterator[str]:
    """List a key that takes the name of a kind, or keys with `kind`: those with keys of their own."""
    details = ", ".join(filter(None, [_shape(expected), _default(field)]))
    yield f"{indent}- `{field.name}` ({details}): {about}"
    for cls in kinds:
        lines = list(_lines(cls, "", {}, f"{indent}    "))
        if lines:
            kind = next(item.default for item in fields(cls) if item.name == "kind")
            yield f"{indent}  - `kind: {kind}`: {_first_line(cls)}"
            yield from lines


def _beside_keys(expected: Any, keys: str) -> str:
    """Return what a value may be besides keys, then `keys`: `text or keys as in sft`."""
    parts = [named(part) for part in _alternatives(expected) if _is_plain(part)]
    return " or ".join([*parts, *([keys or "keys"] if parts or keys else [])])


def _alternatives(expected: Any) -> list[Any]:
    """Return the members of unions and lists, at any depth."""
    if get_origin(expected) in (Union, UnionType, tuple):
        return [part for arg in get_args(expected) for part in _alternatives(arg)]
    return [expected]


def _is_plain(part: Any) -> bool:
    return part is str or get_origin(part) is Literal


def _inners(expected: Any) -> list[type]:
    """Return the dataclasses in a type such as `tuple[SourceConfig, ...]` or `AdapterConfig | None`."""
    if is_dataclass(expected) and isinstance(expected, type):
        return [expected]
    return [inner for arg in get_args(expected) for inner in _inners(arg)]


def _shape(expected: Any) -> str:
    """Return the type in words; an optional key's None isn't named."""
    if get_origin(expected) in (Union, UnionType):
        names = (named(arg) for arg in get_args(expected) if arg is not NoneType)
        return " or ".join(dict.fromkeys(names))
    return named(expected)


def _default(field: Field[Any]) -> str:
    default = field.default
    if default is MISSING and field.default_factory is MISSING:
        return "required"
    if default is MISSING or default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return f"default {', '.join(map(str, default))}"
    return f"default {str(default).lower() if isinstance(default, bool) else default}"


def _field_docs(cls: type) -> dict[str, str]:
    """Return the string below each field of a dataclass and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                docs[ast.unparse(field.target)] = " ".join(text.split())
    return docs


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
