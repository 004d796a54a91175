"""A merge as JSON in merge.json, and back, so that it can be computed again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dualign.config import Document, parse
from dualign.merging.config import Merge


def to_json(merge: Merge) -> dict[str, Any]:
    """Return everything that the result depends on, besides the inputs themselves."""
    inner = {name: to_json(part) for name, part in merge.inner.items()}
    return {**asdict(merge), "lines": {}, "inner": inner}


def from_json(value: Mapping[str, Any], *, file: str) -> Merge:
    """Return the merge that `to_json` wrote.

    Raises:
        ConfigError: `value` isn't a merge; `file` is named in the message.
    """
    document = Document(file=file)
    merge = parse(Merge, value, document)
    document.raise_problems()
    assert merge is not None, "without problems there is a merge"
    return merge
