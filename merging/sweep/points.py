"""A point of a sweep -> its merge: `$NAME` and `1 - $NAME` give way to numbers, then the merge is read as always."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualign.config import Document, Key, parse
from dualign.errors import ConfigError
from dualign.merging.config import Merge, MergeSource, MergeStage
from dualign.merging.mergekit.load import parse_documents

Point = Mapping[str, Any]
"""the value of each name; of a soup, `soup`: the places of the models that are in it"""
Problem = tuple[Key, str]
SOUP = "soup"

_OPEN = re.compile(r"(?P<rest>1\s*-\s*)?\$(?P<name>[A-Za-z_]\w*)")


@dataclass(slots=True)
class _Noted(Document):
    """A document that keeps the key of each problem."""

    noted: list[Problem] = field(default_factory=list)

    def refuse(self, key: Key, message: str) -> None:
        self.noted.append((key, message))
        Document.refuse(self, key, message)


def read_merge(given: Any, point: Point, name: str) -> tuple[Merge | None, list[Problem]]:
    """The merge at a point, and what is wrong with it, by key."""
    filled = _filled(given, point)
    if isinstance(filled, list) or "merge_method" in filled:
        return _from_documents(filled if isinstance(filled, list) else [filled], point, name)
    document = _Noted(file=name)
    stage = parse(MergeStage, {"name": name, **filled}, document)
    return _with_soup(stage.merge(), point) if stage else None, document.noted


def merge_at(given: Any, point: Point, name: str) -> Merge:
    """The merge at a point.

    Raises:
        ConfigError: it can't be right, which the recipe's own checks should have told before.
    """
    merge, problems = read_merge(given, point, name)
    if merge is None or problems:
        raise ConfigError("\n".join(f"{name}: {key}: {message}" for key, message in problems))
    return merge


def _from_documents(
    values: Sequence[Any], point: Point, name: str
) -> tuple[Merge | None, list[Problem]]:
    documents = [_Noted(file=name, value=one) for one in values]
    try:
        merge = parse_documents([*documents], Path())
    except ConfigError as error:
        several = len(documents) > 1
        found = [
            ((i, *key) if several else key, message)
            for i, document in enumerate(documents)
            for key, message in document.noted
        ]
        return None, found or [((), str(error))]
    return _with_soup(merge, point), []


def _with_soup(merge: Merge, point: Point) -> Merge:
    """Models that aren't in the soup get weight 0; they stay, so that config and tokenizer do."""
    if SOUP not in point:
        return merge
    (one,) = merge.slices
    sources = tuple(
        source if place in point[SOUP] else _without_weight(source)
        for place, source in enumerate(one.sources)
    )
    return replace(merge, slices=(replace(one, sources=sources),))


def _without_weight(source: MergeSource) -> MergeSource:
    level = source.parameters
    return replace(source, parameters=replace(level, values={**level.values, "weight": 0.0}))


def _filled(value: Any, point: Point) -> Any:
    """The same values as YAML gives them, with the point's numbers in the open places."""
    if isinstance(value, Mapping):
        return {name: _filled(one, point) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(one, point) for one in value]
    found = _OPEN.fullmatch(value) if isinstance(value, str) else None
    if found is None or found["name"] not in point:
        return value
    number = point[found["name"]]
    # Rounded, so that 1 - 0.9 is 0.1.
    return round(1 - number, 12) if found["rest"] and _is_number(number) else number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def names_in(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Where each name is used: (dotted key, name)."""
    found = ((where, _OPEN.fullmatch(text)) for where, text in _texts(value, key))
    return [(where, one["name"]) for where, one in found if one]


def wrong_expressions(value: Any, names: Sequence[str]) -> list[tuple[str, str]]:
    """Texts that use a name in a way that isn't understood, such as `2 * $a`."""
    return [
        (where, text)
        for where, text in _texts(value, "")
        if not _OPEN.fullmatch(text) and any(one["name"] in names for one in _OPEN.finditer(text))
    ]


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, one in items:
        yield from _texts(one, f"{key}.{name}" if key else str(name))
