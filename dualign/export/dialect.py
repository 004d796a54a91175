"""Which of dualign's chat formats a checkpoint speaks, and what its template has to become in a GGUF file.

llama.cpp's server gives `enable_thinking: true` to every template unless a request says otherwise.
The `dualign` template lets that argument beat the flags in the system message, so under
llama-server /no_think there would do nothing. In the file the flags come first, as in SmolLM3's
template.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualign.errors import TemplateError

NAMES = ("dualign", "smollm3", "chatml")
_DEFAULT = re.compile(r"\{%- set (\w+) = \1 if \1 is defined else (.*) %\}\n")
_FLAGS_FIRST = (
    ("namespace(mode='/think',", "namespace(mode='/think', flagged=false,"),
    (
        "{%- set state.mode = word %}",
        "{%- set state.mode = word %}\n                {%- set state.flagged = true %}",
    ),
    (
        "{%- if enable_thinking is defined and enable_thinking is not none %}",
        "{%- if not state.flagged and enable_thinking is defined and enable_thinking is not none %}",
    ),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """A chat format of ours, and the values that a recipe gave its template."""

    name: str
    values: Mapping[str, Any]


def dialect_of(chat_template: str) -> Dialect | None:
    """The format of a template's text; None if it isn't one of ours."""
    from dualign.data.template import load_template

    values: dict[str, Any] = {}
    text = chat_template
    while found := _DEFAULT.match(text):
        values[found[1]] = json.loads(found[2])
        text = text[found.end() :]
    for name in NAMES:
        if text == load_template(name).text:
            return Dialect(name, values)
    return None


def embedded(chat_template: str) -> str:
    """The template as the file holds it.

    Raises:
        TemplateError: the `dualign` template has changed under this module.
    """
    dialect = dialect_of(chat_template)
    if dialect is None or dialect.name != "dualign":
        return chat_template
    for old, new in _FLAGS_FIRST:
        if chat_template.count(old) != 1:
            raise TemplateError(
                f"template dualign: expected {old!r} once; the export needs mending"
            )
        chat_template = chat_template.replace(old, new)
    return chat_template
