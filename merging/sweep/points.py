"""The merge at a point of a sweep: numbers replace `$NAME` and `1 - $NAME` in its template.

{model: runs/apo, weight: $a}, {model: runs/base, weight: 1 - $a}    at {a: 0.9}
{model: runs/apo, weight: 0.9}, {model: runs/base, weight: 0.1}
"""

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
"""the value of each name; for a greedy soup, `soup`: the indices of the models that are in it"""
Problem = tuple[Key, str]
SOUP = "soup"

_PLACEHOLDER = re.compile(r"(?P<rest>1\s*-\s*)?\$(?P<name>[A-Za-z_]\w*)")


@dataclass(slots=True)
class _KeyedDocument(Document):
    """A document that keeps the key of each problem."""

    keyed_problems: list[Problem] = field(default_factory=list)

    def refuse(self, key: Key, message: str) -> None:
        self.keyed_problems.append((key, message))
        Document.refuse(self, key, message)


def read_merge(template: Any, point: Point, name: str) -> tuple[Merge | None, list[Problem]]:
    """Return the merge at a point, and its problems by key.

    `template` is the sweep's `merge`: a merge stage, or one or several documents in mergekit's
    form.
    """
    values = _substituted(template, point)
    if isinstance(values, list) or "merge_method" in values:
        return _read_documents(values if isinstance(values, list) else [values], point, name)
    document = _KeyedDocument(file=name)
    stage = parse(MergeStage, {"name": name, **values}, document)
    return _with_soup(stage.merge(), point) if stage else None, document.keyed_problems


def merge_at(template: Any, point: Point, name: str) -> Merge:
    """Return the merge at a point.

    Raises:
        ConfigError: it has problems; the checks of the recipe report most of them earlier.
    """
    merge, problems = read_merge(template, point, name)
    if merge is None or problems:
        raise ConfigError("\n".join(f"{name}: {key}: {message}" for key, message in problems))
    return merge


def _read_documents(
    values: Sequence[Any], point: Point, name: str
) -> tuple[Merge | None, list[Problem]]:
    documents = [_KeyedDocument(file=name, value=value) for value in values]
    try:
        merge = parse_documents([*documents], Path())
    except ConfigError as error:
        several = len(documents) > 1
        problems: list[Problem] = [
            ((i, *key) if several else key, message)
            for i, document in enumerate(documents)
            for key, message in document.keyed_problems
        ]
        return None, problems or [((), str(error))]
    return _with_soup(merge, point), []


def _with_soup(merge: Merge, point: Point) -> Merge:
    """Give models outside of the soup weight 0; they stay for their config and tokenizer."""
    if SOUP not in point:
        return merge
    (slice_,) = merge.slices
    sources = tuple(
        source if i in point[SOUP] else _without_weight(source)
        for i, source in enumerate(slice_.sources)
    )
    return replace(merge, slices=(replace(slice_, sources=sources),))


def _without_weight(source: MergeSource) -> MergeSource:
    level = source.parameters
    return replace(source, parameters=replace(level, values={**level.values, "weight": 0.0}))


def _substituted(value: Any, point: Point) -> Any:
    """Return plain YAML values with the point's numbers in place of the placeholders."""
    if isinstance(value, Mapping):
        return {name: _substituted(item, point) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_substituted(item, point) for item in value]
    match = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    if match is None or match["name"] not in point:
        return value
    number = point[match["name"]]
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    # Rounded, so that 1 - 0.9 is 0.1.
    return round(1 - number, 12) if match["rest"] and is_number else number


def placeholders(template: Any) -> list[tuple[str, str]]:
    """Return (dotted key, name) of each placeholder."""
    matches = ((key, _PLACEHOLDER.fullmatch(text)) for key, text in _texts(template, ""))
    return [(key, match["name"]) for key, match in matches if match]


def invalid_expressions(template: Any, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (dotted key, text) of texts that use a name in another way, such as `2 * $a`."""
    return [
        (key, text)
        for key, text in _texts(template, "")
        if not _PLACEHOLDER.fullmatch(text)
        and any(match["name"] in names for match in _PLACEHOLDER.finditer(text))
    ]


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, item in items:
        yield from _texts(item, f"{key}.{name}" if key else str(name))
