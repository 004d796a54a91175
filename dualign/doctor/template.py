"""Checks of a template by itself: small conversations are rendered before any row is read."""

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from dualign.data.conversation import MODES, Conversation, Message, Mode
from dualign.data.text.template import ChatTemplate
from dualign.data.text.turn_shapes import common_prefix
from dualign.data.think_tags import FLAG, OPEN
from dualign.doctor.findings import Finding
from dualign.errors import TemplateError
from dualign.switch import tried

_DAYS = ("9 February 2024", "23 November 2031")
_ANSWER, _TRACE, _QUESTION = "probeanswer", "probetrace", "probequestion"
_USER_TURN = (Message(role="user", content=_QUESTION),)
_TOOL = {
    "type": "function",
    "function": {
        "name": "probetool",
        "description": "Looks something up.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "What to look up."}},
            "required": ["x"],
        },
    },
}
_CALL = {"type": "function", "function": {"name": "probetool", "arguments": {"x": "1"}}}
_MAX_HEADER_WORDS = 4
"""More words before the question are a system text, not turn names and flags."""


def check_template(
    template: ChatTemplate, *, modes: Collection[str] = (), proven: Collection[str] = ()
) -> list[Finding]:
    """Check a template. A template that needs tools is judged by its rows alone.

    Args:
        template: the template.
        modes: those of the rows that it will render; empty: both.
        proven: modes of which rows are trained, so that a row of another kind is no evidence.
    """
    try:
        texts = {mode: _render(template, _probe(mode)) for mode in MODES}
    except TemplateError as error:
        return [] if _needs_tools(template) else [Finding("template_unusable", str(error))]
    checks = (_check_date, _check_system, _check_tools)
    findings = list(_check_turns(template, modes or MODES, proven))
    findings += [finding for check in checks for finding in check(template)]
    findings += _check_switch(template, modes)
    if _TRACE not in texts["think"] and "think" in (modes or MODES) and "think" not in proven:
        message = f"the trace isn't in the text of a think turn: {texts['think'][-120:]!r}"
        findings.append(Finding("thinking_lost", message))
    return findings


def opening(template: ChatTemplate, mode: Mode) -> str:
    """Return the text that the generation prompt appends to a conversation."""
    try:
        text_of = template.texts(_conversation(_USER_TURN, mode))
        prompt, without = text_of(1, True), text_of(1, False)
    except TemplateError:
        return ""
    return prompt[len(without) :] if prompt.startswith(without) else ""


def _needs_tools(template: ChatTemplate) -> bool:
    try:
        _render(template, replace(_probe("no_think"), tools=(_TOOL,)))
    except TemplateError:
        return False
    return True


def _check_turns(
    template: ChatTemplate, modes: Collection[str], proven: Collection[str]
) -> Iterator[Finding]:
    for mode in (mode for mode in MODES if mode in modes):
        conversation = _probe(mode)
        prompt = template.prompt(conversation.messages[:1], mode=mode)
        text = _render(template, conversation)
        if not text.startswith(prompt):
            if mode in proven:
                continue
            at = len(common_prefix(prompt, text))
            message = (
                f"{mode}: after {prompt[max(0, at - 40) : at]!r} the prompt goes on with "
                f"{prompt[at : at + 40]!r}, the turn with {text[at : at + 40]!r}"
            )
            yield Finding("prompt_not_prefix", message)
            continue
        longer = replace(conversation, messages=conversation.messages * 2)
        try:
            both = _render(template, longer)
        except TemplateError:
            continue
        if not both.startswith(text.rstrip()):
            yield Finding("history_rewritten", f"{mode}: {_difference(text, both)}")


def _check_switch(template: ChatTemplate, modes: Collection[str]) -> Iterator[Finding]:
    prompts = {mode: template.prompt(_USER_TURN, mode=mode) for mode in MODES}
    if prompts["think"] == prompts["no_think"]:
        if not set(MODES) <= set(modes):  # else their rows were compared
            message = f"both modes have the prompt {prompts['think'][-80:]!r}. Tried: "
            yield Finding("mode_switch_dead", message + f"{tried(template.named_switch)}")
    elif OPEN not in opening(template, "think"):
        message = f"the think prompt ends with {prompts['think'][-40:]!r}"
        yield Finding("think_not_prefilled", message)


def _check_date(template: ChatTemplate) -> Iterator[Finding]:
    """Find a prompt that changes with the date: training uses one date, serving today's."""
    before, after = (_with_clock(template, day).prompt(_USER_TURN, mode="think") for day in _DAYS)
    if before != after:
        yield Finding("date_leak", _difference(before, after))


def _check_system(template: ChatTemplate) -> Iterator[Finding]:
    before = template.prompt(_USER_TURN, mode="no_think").partition(_QUESTION)[0]
    bare = re.sub(rf"<[^>]*>|\[/?[A-Z_]+\]|{FLAG.pattern}", " ", before)
    if len(bare.split()) > _MAX_HEADER_WORDS:
        yield Finding("default_system_prompt", f"before the first question: {before[:200]!r}")
    try:
        end = template.end_of_turn
        system = (Message(role="system", content="probesystem"), *_USER_TURN)
        text = template.prompt(system, mode="no_think")
    except TemplateError:
        return
    between = text.partition("probesystem")[2].partition(_QUESTION)[0]
    # A single marker that opens a first question, too, opens this one, and nothing closed the system.
    markers = re.findall(r"<\|?[\w|]+>", between)
    if len(markers) == 1 and end not in between and markers[0] in before:
        yield Finding("system_not_closed", f"between system text and question: {between!r}")


def _check_tools(template: ChatTemplate) -> Iterator[Finding]:
    call = Message(role="assistant", content="", tool_calls=(_CALL,))
    messages = (*_USER_TURN, call)
    try:
        text = _render(template, _conversation(messages, "no_think"))
    except TemplateError as error:
        yield Finding("tool_calls_lost", f"a turn that only calls can't be rendered: {error}")
        return
    if "probetool" not in text:
        yield Finding("tool_calls_lost", f"a turn that calls a tool becomes {text[-80:]!r}")


def _probe(mode: Mode) -> Conversation:
    trace = _TRACE if mode == "think" else None
    answer = Message(role="assistant", content=_ANSWER, thinking=trace)
    return _conversation((*_USER_TURN, answer), mode)


def _conversation(messages: tuple[Message, ...], mode: Mode) -> Conversation:
    return Conversation(messages=messages, mode=mode, source="probe", row=0)


def _render(template: ChatTemplate, conversation: Conversation) -> str:
    return template.texts(conversation)(len(conversation.messages), False)


def _with_clock(template: ChatTemplate, day: str) -> ChatTemplate:
    """Return the template with a clock that always gives `day`."""
    clock = f"{{%- macro strftime_now(format) -%}}{day}{{%- endmacro %}}{{{{ '' }}}}"
    return replace(template, text=clock + template.text)


def _difference(before: str, after: str) -> str:
    at = len(common_prefix(before, after))
    start = max(0, at - 20)
    return f"{before[start : at + 40]!r} becomes {after[start : at + 40]!r}"
