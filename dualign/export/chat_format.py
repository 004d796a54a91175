"""Which of dualign's chat formats a checkpoint speaks."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = ("dualign", "smollm3", "chatml")
_DEFAULT = re.compile(r"\{%- set (\w+) = \1 if \1 is defined else (.*) %\}\n")


@dataclass(frozen=True, slots=True)
class Dialect:
    """A chat format of ours, and the values that a recipe gave its template."""

    name: str
    values: Mapping[str, Any]


def dialect_of(chat_template: str) -> Dialect | None:
    """The format of a template's text; None if it isn't one of ours."""
    from dualign.data.text.template import load_template

    values: dict[str, Any] = {}
    text = chat_template
    while found := _DEFAULT.match(text):
        values[found[1]] = json.loads(found[2])
        text = text[found.end() :]
    for name in NAMES:
        if text == load_template(name).text:
            return Dialect(name, values)
    return None
