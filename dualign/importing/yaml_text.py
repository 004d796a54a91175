"""Plain values as YAML with comments."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dualign.config import dotted, parse_value
from dualign.errors import ConfigError

_WIDTH = 100


def comment(text: str, indent: str) -> Iterator[str]:
    """Yield a text as lines that begin with `indent`, which has the sign of a comment."""
    lines = textwrap.wrap(
        text, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False
    )
    for number, line in enumerate(lines):
        yield f"{indent}{'  ' if number else ''}{line}"


def yaml_lines(
    value: Any, comments: Mapping[str, str], key: tuple[str | int, ...] = ()
) -> Iterator[str]:
    """Yield a mapping or list as YAML; `comments` stand above their keys (`stages[0].data.max_tokens`)."""
    indent = "  " * _depth(key)
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, item in items:
        place = (*key, name)
        if text := comments.get(dotted(place)):
            yield from comment(text, f"{indent}# ")
        head = "-" if isinstance(name, int) else f"{_scalar(name)}:"
        if not _is_block(item):
            yield f"{indent}{head} {_flow(item)}"
        elif isinstance(name, int):
            first, *rest = yaml_lines(item, comments, place)
            lines = [first, *rest]
            start = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
            yield from lines[:start]
            yield f"{indent}- {lines[start].lstrip()}"
            yield from lines[start + 1 :]
        else:
            yield f"{indent}{head}"
            yield from yaml_lines(item, comments, place)


def _depth(key: Sequence[str | int]) -> int:
    return len(key)


def _is_block(item: Any) -> bool:
    """Return whether a value gets lines of its own: keys, and lists of keys."""
    if isinstance(item, Mapping):
        return bool(item)
    return isinstance(item, list) and any(isinstance(part, Mapping) for part in item)


def _flow(item: Any) -> str:
    if isinstance(item, Mapping):
        return "{}"
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(_flow, item))}]"
    return _scalar(item)


def _scalar(value: Any) -> str:
    """Return a value as the recipe's reader reads it back."""
    if isinstance(value, str):
        plain = value and not set(value) & set("#:{}[],&*!|>'\"%@`\n\t\\")
        plain = (
            plain and value == value.strip() and value[0] not in "-?" and _reads_as(value, value)
        )
        return value if plain else json.dumps(value, ensure_ascii=False)
    text = yaml.safe_dump(value).splitlines()[0]
    return text


def _reads_as(text: str, value: Any) -> bool:
    try:
        return bool(parse_value(text) == value and isinstance(parse_value(text), str))
    except (ConfigError, ValueError):
        return False
