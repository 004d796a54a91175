"""Detect which of dualign's chat formats a checkpoint uses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAMES = ("dualign", "smollm3", "chatml")
_DEFAULT = re.compile(r"\{%- set (\w+) = \1 if \1 is defined else (.*) %\}\n")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """One of dualign's chat formats, with the recipe's values for its template."""

    name: str
    values: Mapping[str, Any]


def detect_chat_format(chat_template: str) -> ChatFormat | None:
    """Return the format of a template's text; None if it isn't one of dualign's."""
    from dualign.data.text.modes import without_switch_line
    from dualign.data.text.template import load_template

    values: dict[str, Any] = {}
    text = without_switch_line(chat_template)
    while match := _DEFAULT.match(text):
        values[match[1]] = _value(match[2])
        text = text[match.end() :]
    for name in _NAMES:
        if text == load_template(name).text:
            return ChatFormat(name, values)
    return None


def _value(literal: str) -> Any:
    """Return the value of a jinja literal, as `with_defaults` writes it."""
    from jinja2 import Environment, nodes

    expression = Environment().parse(f"{{{{ {literal} }}}}").find(nodes.Output)
    assert expression is not None, "a literal is printed"
    return expression.nodes[0].as_const()
