"""The keys of a recipe as text, read off the dataclasses: name, type, default, and the words below each field."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dualign.config import named


def key_list(kinds: Mapping[str, type]) -> str:
    """Each kind and its keys, as nested lists in Markdown. What two of them share is listed once."""
    listed: dict[type, str] = {}
    parts = [
        f"## {kind}\n\n{_first_line(cls)}\n\n" + "\n".join(_lines(cls, kind, listed))
        for kind, cls in kinds.items()
    ]
    return "\n\n".join(parts)


def _lines(cls: type, kind: str, listed: dict[type, str], indent: str = "") -> Iterator[str]:
    hints, told = get_type_hints(cls, include_extras=True), _told(cls)
    for one in fields(cls):
        if one.name == "kind":
            continue  # the heading says it
        inner = _inner(hints[one.name])
        above = listed.get(inner) if inner else None
        shape = f"keys as in {above}" if above else "" if inner else _shape(hints[one.name])
        about = ", ".join(filter(None, [shape, _default(one)]))
        yield f"{indent}- `{one.name}`{f' ({about})' if about else ''}: {told[one.name]}"
        if inner and not above:
            listed[inner] = kind
            yield from _lines(inner, kind, listed, f"{indent}  ")


def _inner(expected: Any) -> type | None:
    """The dataclass in a type such as `tuple[SourceConfig, ...]` or `AdapterConfig | None`."""
    if is_dataclass(expected) and isinstance(expected, type):
        return expected
    return next((found for one in get_args(expected) if (found := _inner(one))), None)


def _shape(expected: Any) -> str:
    """The type in words; a key that may be left out has nothing as its other type."""
    if get_origin(expected) in (Union, UnionType):
        return " or ".join(named(one) for one in get_args(expected) if one is not NoneType)
    return named(expected)


def _default(one: Field[Any]) -> str:
    if one.default is MISSING and one.default_factory is MISSING:
        return "required"
    if one.default is MISSING or one.default is None or one.default == ():
        return ""
    if isinstance(one.default, tuple):
        return f"default {', '.join(map(str, one.default))}"
    return f"default {str(one.default).lower() if isinstance(one.default, bool) else one.default}"


def _told(cls: type) -> dict[str, str]:
    """Field -> the string below it, of the class and those it is made from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if not is_dataclass(one):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                found[ast.unparse(field.target)] = " ".join(text.split())
    return found


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
