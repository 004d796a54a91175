"""Small conversations put through a template, to know how it behaves before any row is read."""

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from dualign.data.conversation import MODES, Conversation, Message, Mode
from dualign.data.modes import FLAG, OPEN
from dualign.data.text.template import ChatTemplate
from dualign.doctor.findings import Fault
from dualign.doctor.rendering import opening
from dualign.errors import TemplateError

_DAYS = ("9 February 2024", "23 November 2031")
_ANSWER, _TRACE, _QUESTION = "probeanswer", "probetrace", "probequestion"
_TOOL = {
    "type": "function",
    "function": {
        "name": "probetool",
        "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
_CALL = {"type": "function", "function": {"name": "probetool", "arguments": {"x": "1"}}}
_MOST_HEADER_WORDS = 4
"""Words of a prompt besides the question that are turn names and flags, not a system text."""


def template_faults(template: ChatTemplate, *, modes: Collection[str] = ()) -> list[Fault]:
    """How a template behaves in both modes. `modes` are those of the rows that it will get."""
    try:
        texts = {mode: _render(template, _asked(mode)) for mode in MODES}
    except TemplateError as error:
        return [Fault("template_unusable", str(error))]
    checks = (_turn_faults, _date_faults, _system_faults, _tool_faults)
    faults = [fault for check in checks for fault in check(template)]
    faults += _switch_faults(template, modes)
    if _TRACE not in texts["think"]:
        found = f"the trace isn't in the text of a think turn: {texts['think'][-120:]!r}"
        faults.append(Fault("thinking_lost", found))
    return faults


def _turn_faults(template: ChatTemplate) -> Iterator[Fault]:
    for mode in MODES:
        conversation = _asked(mode)
        prompt = template.prompt(conversation.messages[:1], mode=mode)
        text = _render(template, conversation)
        if not text.startswith(prompt):
            found = f"{mode}: the prompt {prompt[-80:]!r} isn't how {text[:200]!r} begins"
            yield Fault("prompt_not_prefix", found)
            continue
        longer = replace(conversation, messages=conversation.messages * 2)
        try:
            both = _render(template, longer)
        except TemplateError:
            continue
        if not both.startswith(text.rstrip()):
            yield Fault("history_rewritten", f"{mode}: {_difference(text, both)}")


def _switch_faults(template: ChatTemplate, modes: Collection[str]) -> Iterator[Fault]:
    asked = (Message(role="user", content=_QUESTION),)
    prompts = {mode: template.prompt(asked, mode=mode) for mode in MODES}
    if prompts["think"] == prompts["no_think"]:
        found = f"both modes have the prompt {prompts['think'][-80:]!r}"
        yield Fault("mode_switch_dead", found, "error" if set(MODES) <= set(modes) else None)
    elif OPEN not in opening(template, "think"):
        found = f"the think prompt ends with {prompts['think'][-40:]!r}"
        yield Fault("think_not_prefilled", found)


def _date_faults(template: ChatTemplate) -> Iterator[Fault]:
    """Training has one date; what the saved tokenizer renders has today's."""
    asked = (Message(role="user", content=_QUESTION),)
    on_days = [_with_clock(template, day).prompt(asked, mode="think") for day in _DAYS]
    if on_days[0] != on_days[1]:
        yield Fault("date_leak", _difference(*on_days))


def _system_faults(template: ChatTemplate) -> Iterator[Fault]:
    asked = (Message(role="user", content=_QUESTION),)
    before = template.prompt(asked, mode="no_think").partition(_QUESTION)[0]
    bare = re.sub(rf"<[^>]*>|\[/?[A-Z_]+\]|{FLAG.pattern}", " ", before)
    if len(bare.split()) > _MOST_HEADER_WORDS:
        yield Fault("default_system_prompt", f"before the first question: {before[:200]!r}")
    try:
        end = template.end_of_turn
        system = (Message(role="system", content="probesystem"), *asked)
        text = template.prompt(system, mode="no_think")
    except TemplateError:
        return
    between = text.partition("probesystem")[2].partition(_QUESTION)[0]
    # One marker alone opens the next turn; nothing closed this one.
    if len(re.findall(r"<\|?[\w|]+>", between)) == 1 and end not in between:
        yield Fault("system_not_closed", f"between system text and question: {between!r}")


def _tool_faults(template: ChatTemplate) -> Iterator[Fault]:
    call = Message(role="assistant", content="", tool_calls=(_CALL,))
    messages = (Message(role="user", content=_QUESTION), call)
    try:
        text = _render(template, _conversation(messages, "no_think"))
    except TemplateError as error:
        yield Fault("tool_calls_lost", f"a turn that only calls can't be rendered: {error}")
        return
    if "probetool" not in text:
        yield Fault("tool_calls_lost", f"a turn that calls a tool becomes {text[-80:]!r}")


def _asked(mode: Mode) -> Conversation:
    trace = _TRACE if mode == "think" else None
    answer = Message(role="assistant", content=_ANSWER, thinking=trace)
    return _conversation((Message(role="user", content=_QUESTION), answer), mode)


def _conversation(messages: tuple[Message, ...], mode: Mode) -> Conversation:
    return Conversation(messages=messages, mode=mode, source="probe", row=0)


def _render(template: ChatTemplate, conversation: Conversation) -> str:
    return template.texts(conversation)(len(conversation.messages), False)


def _with_clock(template: ChatTemplate, day: str) -> ChatTemplate:
    """The template with a clock of its own, which always says `day`."""
    clock = f"{{%- macro strftime_now(format) -%}}{day}{{%- endmacro %}}{{{{ '' }}}}"
    return replace(template, text=clock + template.text)


def _difference(one: str, other: str) -> str:
    length = min(len(one), len(other))
    at = next((place for place in range(length) if one[place] != other[place]), length)
    start = max(0, at - 20)
    return f"{one[start : at + 40]!r} becomes {other[start : at + 40]!r}"
