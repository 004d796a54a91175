"""The switch of a chat template: as the template states it, or found by trying the known ones.

A switch that a recipe names is written into the first lines of the saved template, as a comment
that no engine prints: `{# switch: {"think": {"effort": 2}, "no_think": {"effort": 0}} #}`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from dualign.data.conversation import MODES
from dualign.errors import TemplateError
from dualign.switch import KNOWN, Switch

_LINE = re.compile(r"^\{# switch: (\{.*\}) #\}$", re.MULTILINE)
_WORD = "qzx"


class Ask(Protocol):
    """Render a question after a system message, with variables of the template."""

    def __call__(self, system: str | None, variables: Mapping[str, Any]) -> str: ...


def switch_line(switch: Switch) -> str:
    """Return the line that states a switch in a template."""
    content = json.dumps({mode: dict(switch.of(mode)) for mode in MODES})
    # The comment may not end inside a text.
    return "{# switch: " + content.replace("#", "\\u0023") + " #}\n"


def stated_switch(text: str) -> Switch | None:
    """Return the switch that a template's text states."""
    match = _LINE.search(text)
    try:
        entries = json.loads(match[1]) if match else None
    except json.JSONDecodeError:
        return None
    if not isinstance(entries, dict) or not all(
        isinstance(entries.get(mode), dict) for mode in MODES
    ):
        return None
    switch = Switch(**{mode: entries[mode] for mode in MODES})
    return None if switch.problems() else switch


def without_switch_line(text: str) -> str:
    """Return a template without the line that states its switch."""
    return re.sub(_LINE.pattern + "\n", "", text, count=1, flags=re.MULTILINE)


def find_switch(text: str, ask: Ask) -> Switch | None:
    """Return the known switch that a template reads; None if there is none."""
    return next((switch for switch in KNOWN if _reads(switch, text, ask)), None)


def tells_apart(switch: Switch, ask: Ask) -> bool:
    """Return whether a plain question has another prompt in each mode."""
    return len({ask(_system(switch, mode), switch.variables(mode)) for mode in MODES}) > 1


def _reads(switch: Switch, text: str, ask: Ask) -> bool:
    try:
        if not tells_apart(switch, ask):
            return False
        texts = [words for mode in MODES if (words := _system(switch, mode))]
        return not texts or any(_instructs(words, text, ask) for words in texts)
    except TemplateError:  # it can't render a system message, for one
        return False


def _instructs(words: str, text: str, ask: Ask) -> bool:
    """Return whether a system text does more than any other text would."""
    named = "/" not in words and words in text
    return named or ask(words, {}) != ask(_WORD, {}).replace(_WORD, words)


def _system(switch: Switch, mode: str) -> str | None:
    messages = switch.with_system([], mode)
    return str(messages[0]["content"]) if messages else None
