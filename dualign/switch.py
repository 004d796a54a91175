"""How a family of models switches between its modes: one entry for each known way.

    switch: {think: {thinking: true}, no_think: {thinking: false}}
    switch: {think: {system: detailed thinking on}, no_think: {system: detailed thinking off}}

In an entry `system` is a text at the head of the system message; every other name is a variable of
the chat template. `dualign/data/text/modes.py` finds the entry of a template by trying all of them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dualign.config import Document, parse

_SYSTEM = "system"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OTHER = {"think": "no_think", "no_think": "think"}
_FIXED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "strftime_now"})
_LEVELS = frozenset({"reasoning_effort"})
"""Variables with more values than the two of the switch: a row's own value stays."""
ModeName = Literal["think", "no_think"]
_MODES: tuple[ModeName, ...] = ("think", "no_think")


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """What a prompt of each mode is given. Without any entry the model has no modes."""

    think: Mapping[str, Any] = field(default_factory=dict)
    """variables of the chat template in think mode; system: text at the head of the system message"""
    no_think: Mapping[str, Any] = field(default_factory=dict)
    """the same in no_think mode"""

    def problems(self) -> list[tuple[str, str]]:
        issues = [
            (f"{mode}.{name}", message)
            for mode in _MODES
            for name, value in self.of(mode).items()
            if (message := _problem(name, value))
        ]
        if not issues and self and self.think == self.no_think:
            issues.append(("no_think", "the same as think: expected something that differs"))
        return issues

    def __bool__(self) -> bool:
        return bool(self.think or self.no_think)

    def of(self, mode: str) -> Mapping[str, Any]:
        """Return the entry of a mode."""
        return self.think if mode == "think" else self.no_think

    def variables(self, mode: str, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the template's variables in a mode. `own` are those of a row, which stay where a
        variable has more than two levels.
        """
        kept = _LEVELS.intersection(own or ())
        entry = self.of(mode)
        return {name: entry[name] for name in entry if name != _SYSTEM and name not in kept}

    def with_system(self, messages: Sequence[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
        """Return the messages with the mode's text at the head of the system message.

        A system message that holds it already stays; the other mode's text is replaced.
        """
        text, turns = self.of(mode).get(_SYSTEM), list(messages)
        if not text:
            return turns
        if not turns or turns[0]["role"] != "system":
            return [{"role": "system", "content": text}, *turns]
        head, *rest = turns
        content = self.without_other(str(head["content"]), mode)
        if not _holds(content, text):
            content = f"{text}\n\n{content}" if content.strip() else text
        return [{**head, "content": content}, *rest]

    def without_other(self, system: str, mode: str) -> str:
        """Return a system message with the mode's text in place of the other mode's."""
        text, other = (self.of(name).get(_SYSTEM) for name in (mode, _OTHER[mode]))
        if not text or not other or not _holds(system, other):
            return system
        return _phrase(other).sub(lambda _: str(text), system)

    def declared(self, system: str, variables: Mapping[str, Any]) -> dict[str, ModeName]:
        """Return who in a row says which mode: its variables, and the text of its system message."""
        says: dict[str, ModeName] = {}
        for mode, other in (_MODES, _MODES[::-1]):
            for name, value in self.of(mode).items():
                if _is(self.of(other), name, value) or name in _LEVELS:
                    continue
                if name == _SYSTEM and _holds(system, value):
                    says[f"{value!r} in the system message"] = mode
                elif name != _SYSTEM and _is(variables, name, value):
                    says[f"the row's {name}"] = mode
        return says

    def names(self) -> list[str]:
        """Return the variables that the switch sets."""
        return [name for name in dict.fromkeys((*self.think, *self.no_think)) if name != _SYSTEM]

    def __str__(self) -> str:
        """The switch as a recipe has it, on one line."""
        modes = (f"{mode}: {_flow(self.of(mode))}" for mode in _MODES)
        return f"{{{', '.join(modes)}}}"


ENABLE_THINKING = Switch(think={"enable_thinking": True}, no_think={"enable_thinking": False})
KNOWN = (
    ENABLE_THINKING,  # dualign, SmolLM3, Qwen3, GLM, Hunyuan
    Switch(think={"thinking": True}, no_think={"thinking": False}),  # Granite, DeepSeek-V3.1
    Switch(think={"reasoning_effort": "high"}, no_think={"reasoning_effort": "low"}),  # gpt-oss
    Switch(  # Llama-Nemotron
        think={_SYSTEM: "detailed thinking on"}, no_think={_SYSTEM: "detailed thinking off"}
    ),
    Switch(think={_SYSTEM: "/think"}, no_think={_SYSTEM: "/no_think"}),  # Nemotron-Nano-v2
)
"""Tried in this order."""
ADVICE = (
    "If the model has modes, write what switches them, such as switch: {think: {thinking: true}, "
    'no_think: {thinking: false}} or {think: {system: "detailed thinking on"}, no_think: {system: '
    '"detailed thinking off"}}; else use a template that reads enable_thinking (dualign, smollm3)'
)


def read_switch(value: Any, where: str) -> Switch | None:
    """Return a switch that is given as a recipe has it; None stays None.

    Raises:
        ConfigError: with every problem of it; `where` names it.
    """
    if value is None or isinstance(value, Switch):
        return value
    document = Document(file=where)
    switch = parse(Switch, value, document)
    document.raise_problems()
    return switch


def tried(switch: Switch | None) -> str:
    """Return what was tried, for messages: the `switch` that was named, or all known ones."""
    if switch:
        return f"the switch {switch}"
    names = [*KNOWN[0].names(), *KNOWN[1].names(), *KNOWN[2].names()]
    texts = [repr(known.of(mode)[_SYSTEM]) for known in KNOWN[3:] for mode in _MODES]
    return f"the variables {', '.join(names)} and the system texts {', '.join(texts)}"


def _problem(name: object, value: object) -> str | None:
    if name == _SYSTEM:
        is_text = isinstance(value, str) and value.strip()
        hint = " (quote it: YAML reads on, off, yes and no so)" if isinstance(value, bool) else ""
        return None if is_text else f"expected text for the system message, found {value!r}{hint}"
    if name in _FIXED:
        return "every prompt has its own: expected another variable of the template"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "not a name: expected a variable of the template (letters, digits and _), or system"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return f"expected what JSON knows, found {value!r} (quote it to make it text)"
    return None


def _is(entry: Mapping[str, Any], name: str, value: Any) -> bool:
    return name in entry and type(entry[name]) is type(value) and bool(entry[name] == value)


def _holds(content: str, text: str) -> bool:
    return text in content and _phrase(text).search(content) is not None


def _phrase(text: str) -> re.Pattern[str]:
    """Match a text as whole words: `detailed thinking on` isn't in `detailed thinking only`."""
    return re.compile(rf"(?<![\w/]){re.escape(text)}(?![\w/])")


def _flow(entry: Mapping[str, Any]) -> str:
    pairs = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in entry.items())
    return f"{{{', '.join(pairs)}}}"
