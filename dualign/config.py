"""YAML -> frozen dataclasses, strictly: all problems are found and reported together.

A recipe is refused before anything heavy is imported, so this module and every dataclass it fills import only the
standard library and PyYAML.

Rules beyond a field's type are functions that return (key, message) for each violation: of one field
by `Annotated[T, rule]`, across the fields of a dataclass by its method `problems`.
"""

import difflib
import math
import re
import types
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import yaml

from dualign.errors import ConfigError
from dualign.other_names import name_here

Key = tuple[str | int, ...]
T = TypeVar("T")


@dataclass(slots=True)
class Document:
    """A YAML file as plain values, with the line of each key and the problems found so far."""

    file: str
    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def refuse(self, key: Key, message: str) -> None:
        line = next(
            (self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 0
        )
        place = f"{self.file}:{line}" if line else self.file
        self.problems.append(f"{place}: {dotted(key)}: {message}" if key else f"{place}: {message}")

    def raise_problems(self) -> None:
        if self.problems:
            count = len(self.problems)
            heading = f"{count} problem{'s' if count > 1 else ''} in {self.file}"
            raise ConfigError("\n".join([heading, *(f"  {problem}" for problem in self.problems)]))


def dotted(key: Key) -> str:
    """`("data", "sources", 0, "path")` -> `data.sources[0].path`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(word: str, known: Sequence[str], *, missing: Collection[str] = ()) -> str:
    """Return ` (did you mean 'x'?)`; if nothing is close, the list of known words.

    A key of another tool is named by what it is called here, unless it is one letter away from a known word.

    Args:
        missing: words that have to be there and aren't: of equally near ones, these are meant.
    """
    here = name_here(word)
    if here and not difflib.get_close_matches(word, known, n=1, cutoff=0.9):
        return f" (here: {here})"
    match = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    if match:
        best = max(match, key=lambda key: (_likeness(word, key), key in missing))
        return f" (did you mean {best!r}?)"
    return f" (known: {', '.join(sorted(known))})" if 0 < len(known) <= 30 else ""


def _likeness(word: str, key: str) -> float:
    return difflib.SequenceMatcher(None, key, word).ratio()


def nearest_key(word: str, keys: Sequence[str]) -> str | None:
    """Return the key that is likely a misspelling of `word`."""
    match = difflib.get_close_matches(word, keys, n=1, cutoff=0.6)
    return match[0] if match else None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 1e-3 is a number, as in every learning rate."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path, *, shown_as: str | None = None) -> Document:
    """Read a YAML file, with the line of each key.

    Raises:
        ConfigError: the file is missing, isn't YAML, or isn't a mapping.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; `dualign recipes list` names the recipes that ship"
        )
    document = Document(file=shown_as or str(path))
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        document.value = _plain(loader, node, (), document) if node else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{document.file}: not YAML: {error}") from None
    if not isinstance(document.value, dict):
        raise ConfigError(
            f"{document.file}: expected keys with values, found {_shown(document.value)}"
        )
    return document


def read_documents(path: Path) -> list[Document]:
    """Read a YAML file of one or more documents, each with the line of each key.

    Raises:
        ConfigError: the file is missing, isn't YAML, or a document isn't a mapping.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    documents: list[Document] = []
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        while node := loader.get_node() if loader.check_node() else None:
            document = Document(file=str(path))
            document.value = _plain(loader, node, (), document)
            documents.append(document)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    for document in documents:
        if not isinstance(document.value, dict):
            raise ConfigError(f"{path}: expected keys with values, found {_shown(document.value)}")
    if not documents:
        raise ConfigError(f"{path}: expected keys with values, found nothing")
    return documents


def parse_value(text: str) -> Any:
    """Read the right side of `key=value` as YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: not a YAML value: {error}") from None


def _plain(loader: _Loader, node: yaml.Node, key: Key, document: Document) -> Any:
    document.lines[key] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        names = [name for name, _ in node.value if name.tag != "tag:yaml.org,2002:merge"]
        counts = Counter(str(loader.construct_object(name)) for name in names)
        loader.flatten_mapping(node)
        # What `<<: *anchor` brings comes first, and a key of the mapping's own takes its place.
        items = {str(loader.construct_object(name)): (name, value) for name, value in node.value}
        node.value = list(items.values())
        mapping = {
            name: _plain(loader, value, (*key, name), document)
            for name, (_, value) in items.items()
        }
        for name in (name for name, count in counts.items() if count > 1):
            document.refuse((*key, name), "given twice")
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*key, i), document) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def parse(
    cls: type[T], value: Any, document: Document, key: Key = (), *, others: Sequence[str] = ()
) -> T | None:
    """Fill the dataclass `cls` from a mapping; returns None if it has problems, added to `document`.

    Args:
        others: keys that the mapping could have had besides those of `cls`.
    """
    before = len(document.problems)
    if not isinstance(value, dict):
        document.refuse(key, f"expected keys with values, found {_shown(value)}")
        return None
    hints = get_type_hints(cls, include_extras=True)
    missing = _required(cls) - set(value)
    for name in value:
        if name not in hints:
            hint = nearest(name, [*hints, *others], missing=missing)
            document.refuse((*key, name), f"unknown key{hint}")
    values, incomplete = _fields(cls, hints, value, document, key)
    config = None if incomplete else cls(**values)
    if config is not None:
        _check(config, document, key, set(values))
    return config if len(document.problems) == before else None


def _fields(
    cls: type, hints: Mapping[str, Any], value: dict[str, Any], document: Document, key: Key
) -> tuple[dict[str, Any], bool]:
    """Return the valid fields, and whether a required one is missing or wrong."""
    values: dict[str, Any] = {}
    incomplete = False
    for spec in fields(cls):
        required = _is_required(spec)
        before = len(document.problems)
        if spec.name in value:
            converted = _convert(hints[spec.name], value[spec.name], document, (*key, spec.name))
            if len(document.problems) == before:
                values[spec.name] = converted
        elif required:
            document.refuse(key, f"needs the key {spec.name!r} ({named(hints[spec.name])})")
        incomplete = incomplete or (required and spec.name not in values)
    return values, incomplete


def _required(cls: type) -> set[str]:
    return {spec.name for spec in fields(cls) if _is_required(spec)}


def _is_required(spec: Field[Any]) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING


@runtime_checkable
class _HasProblems(Protocol):
    def problems(self) -> list[tuple[str, str]]: ...


def _check(config: Any, document: Document, key: Key, valid: set[str]) -> None:
    """Apply the rules across fields, except to fields that are wrong by themselves."""
    if not isinstance(config, _HasProblems):
        return
    for name, message in config.problems():
        first = name.split(".")[0]
        if not name or first in valid or (*key, first) not in document.lines:
            parts = [int(part) if part.isdigit() else part for part in name.split(".") if part]
            document.refuse((*key, *parts), message)


def _convert(expected: Any, value: Any, document: Document, key: Key) -> Any:
    origin, args = get_origin(expected), get_args(expected)
    if origin is Annotated:
        before = len(document.problems)
        converted = _convert(args[0], value, document, key)
        for check in args[1:] if len(document.problems) == before else ():
            for name, message in check(converted):
                document.refuse((*key, name) if name else key, message)
        return converted
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, document, key)
    if is_dataclass(expected):
        return parse(expected, value, document, key)  # type: ignore[arg-type]  # a class, not an instance
    if origin is Literal:
        return _convert_choice(args, value, document, key)
    if origin is tuple:
        return _convert_list(args[0], value, document, key)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            document.refuse(key, f"expected keys with values, found {_shown(value)}")
            return {}
        return {
            name: _convert(args[1], item, document, (*key, name)) for name, item in value.items()
        }
    return _convert_scalar(expected, value, document, key)


def _convert_choice(choices: tuple[Any, ...], value: Any, document: Document, key: Key) -> Any:
    if value not in choices or isinstance(value, bool):
        known = [str(choice) for choice in choices]
        hint = _near(value, known)
        document.refuse(key, f"expected one of {', '.join(known)}, found {_shown(value)}{hint}")
    return value


def _convert_list(item: Any, value: Any, document: Document, key: Key) -> tuple[Any, ...]:
    if not isinstance(value, list):
        document.refuse(key, f"expected a list, found {_shown(value)}")
        return ()
    return tuple(_convert(item, part, document, (*key, i)) for i, part in enumerate(value))


def _convert_union(args: tuple[Any, ...], value: Any, document: Document, key: Key) -> Any:
    if value is None and type(None) in args:
        return None
    kinds = [arg for arg in args if arg is not type(None)]
    # Where only one of them has the value's shape, its own message says more than "a or b".
    shaped = [kind for kind in kinds if _has_shape(kind, value)]
    if len(shaped) > 1 and all(_kind_name(kind) for kind in shaped):
        return _convert_kind(shaped, value, document, key)
    if isinstance(value, str) and all(
        get_origin(kind) is Literal or _kind_name(kind) for kind in kinds
    ):
        shaped = [kind for kind in kinds if get_origin(kind) is Literal]
    if len(shaped) == 1 or len(kinds) == 1:
        return _convert((shaped or kinds)[0], value, document, key)
    for kind in kinds:
        attempt = Document(file=document.file)
        converted = _convert(kind, value, attempt, key)
        if not attempt.problems:
            return converted
    names = " or ".join(dict.fromkeys(map(named, args)))
    document.refuse(key, f"expected {names}, found {_shown(value)}")
    return None


def _convert_kind(kinds: list[Any], value: Any, document: Document, key: Key) -> Any:
    """Fill that of several dataclasses which the mapping's `kind` names."""
    names = {_kind_name(kind): kind for kind in kinds}
    if "kind" not in value:
        document.refuse(key, f"needs the key 'kind' (one of {', '.join(names)})")
        return None
    choice = _convert_choice(tuple(names), value["kind"], document, (*key, "kind"))
    known = isinstance(choice, str) and choice in names
    return parse(names[choice], value, document, key) if known else None


def _kind_name(expected: Any) -> str:
    """Return what `kind` is in a dataclass of one kind; empty for any other type."""
    if not is_dataclass(expected):
        return ""
    return next((str(item.default) for item in fields(expected) if item.name == "kind"), "")


def _has_shape(expected: Any, value: Any) -> bool:
    """Return whether a list or mapping is of the expected type; False for any other value."""
    origin = get_origin(expected)
    if isinstance(value, dict):
        return is_dataclass(expected) or origin in (dict, Mapping)
    return isinstance(value, list) and origin is tuple


def _convert_scalar(expected: Any, value: Any, document: Document, key: Key) -> Any:
    if expected is Any:
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        document.refuse(key, f"expected {named(expected)}, found {_shown(value)}")
    elif expected is float and math.isnan(value):
        # Every comparison with it is false, so it would switch off the bound that it stands for.
        document.refuse(key, "expected a number, found nan")
    return value


def _near(value: Any, known: list[str]) -> str:
    match = difflib.get_close_matches(str(value), known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _shown(value: Any) -> str:
    names = {dict: "keys with values", list: "a list", type(None): "nothing"}
    if type(value) in names:
        return names[type(value)]
    kind = {str: "text", bool: "true/false", int: "a whole number", float: "a number"}
    return f"{value!r} ({kind.get(type(value), type(value).__name__)})"


def named(expected: Any) -> str:
    """Return a type in a user's words: `a whole number or nothing`."""
    if get_origin(expected) is Annotated:
        return named(get_args(expected)[0])
    if get_origin(expected) is Literal:
        return "one of " + ", ".join(map(str, get_args(expected)))
    if get_origin(expected) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(named, get_args(expected))))
    if get_origin(expected) is tuple:
        return f"a list of {named(get_args(expected)[0])}"
    if get_origin(expected) in (dict, Mapping):
        return "keys with values"
    names = {
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        type(None): "nothing",
    }
    return names.get(expected, "keys with values" if is_dataclass(expected) else str(expected))
