"""Texts that a row may not hold under one tokenizer and template: their control tokens, and flags
that the template would find inside words.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import Message, Mode
from dualign.data.faults import RowFault
from dualign.data.rows.json_columns import LONE_SURROGATE
from dualign.data.text.system_role import takes_system
from dualign.data.text.template import ChatTemplate
from dualign.data.think_tags import FLAG, WHOLE_FLAG
from dualign.errors import TemplateError, excerpt
from dualign.switch import Switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONE_SURROGATE = re.compile(f"[\ud800-\udfff{LONE_SURROGATE}]")
# Tags that belong in contents, though they are special tokens of some tokenizers.
_CONTENT_TAGS = re.compile(r"</?(think|tool_call|tool_response|tool_result|tools|code|answer)>")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRules:
    """`control` matches a control token, each of which begins with the character `head` (empty:
    they begin differently); `flags_in_words`: the template takes the flag in a/thinking for a flag;
    `switch`: what switches the modes, so that rows that hold it say their mode; `no_system`: the
    template has no system role.
    """

    control: re.Pattern[str] | None = None
    head: str = ""
    flags_in_words: bool = False
    switch: Switch | None = None
    no_system: bool = False


_NO_SYSTEM = (
    "the template has no system role; on_fault: {no_system_role: system_into_user} puts it at the head "
    "of the first user turn, as such families document"
)
NO_RULES = TextRules()


def text_rules(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> TextRules:
    """Return the rules of a tokenizer and a template. Control tokens are the tokenizer's special
    tokens and the template's end of turn, except tags of contents.
    """
    added = tokenizer.added_tokens_decoder.values()
    tokens = {token.content for token in added if token.special} | {template.end_of_turn}
    control = [token for token in tokens if token.strip() and not _CONTENT_TAGS.fullmatch(token)]
    heads = {token[0] for token in control}
    longest_first = sorted(control, key=len, reverse=True)
    return TextRules(
        control=re.compile("|".join(map(re.escape, longest_first))) if control else None,
        head=heads.pop() if len(heads) == 1 else "",
        flags_in_words=_reads_flags_in_words(template),
        switch=template.switch,
        no_system=template.folds_system or not takes_system(template),
    )


def check_texts(
    messages: Sequence[Message], kwargs: Mapping[str, Any], rules: TextRules, mode: Mode | None
) -> None:
    """Check all texts of a row.

    Raises:
        RowFault: a text that the tokenizer or the template would take for something else.
    """
    for where, text in _texts(messages, kwargs):
        if not text.isascii() and (half := _LONE_SURROGATE.search(text)):
            around = text[max(0, half.start() - 30) : half.end() + 30]
            shown = _LONE_SURROGATE.sub("?", around)
            what = f"{where} holds half a character (a lone surrogate, the ? in {shown!r})"
            raise RowFault("lone_surrogate", what, mode)
        if match := _control_in(text, rules):
            raise _control_fault(where, match, mode)
    system = messages[0].content if messages and messages[0].role == "system" else ""
    if rules.no_system and messages and messages[0].role == "system":
        raise RowFault("no_system_role", f"a system text ({excerpt(system)}): {_NO_SYSTEM}", mode)
    if rules.flags_in_words and len(FLAG.findall(system)) > len(WHOLE_FLAG.findall(system)):
        what = f"the template takes part of a word for a flag in {system[:80]!r}"
        raise RowFault("flag_in_word", what, mode)


def trim_control_tokens(text: str, control: re.Pattern[str]) -> str:
    """Return the text without the control tokens at its two ends, and the space between them."""
    match = re.fullmatch(
        rf"(?:\s*(?:{control.pattern}))*(.*?)(?:(?:{control.pattern})\s*)*", text, re.DOTALL
    )
    return match[1] if match else text


def _texts(messages: Sequence[Message], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield all texts of a row, each with its place."""
    for turn, message in enumerate(messages):
        where = f"message {turn} of the {message.role}"
        yield where, message.content
        for text in (message.thinking, message.tool_call_id, message.name):
            if text:
                yield where, text
        if message.tool_calls:
            yield from ((where, text) for text in _strings(message.tool_calls))
    for name, value in kwargs.items():
        where = "tools" if name == "tools" else "chat_template_kwargs"
        yield from ((where, text) for text in _strings(value))


def _control_in(text: str, rules: TextRules) -> re.Match[str] | None:
    """Find the first control token of a text. Most texts don't even hold the first character."""
    if rules.control is None or rules.head not in text:
        return None
    return rules.control.search(text)


def _control_fault(where: str, match: re.Match[str], mode: Mode | None) -> RowFault:
    around = match.string[max(0, match.start() - 30) : match.end() + 30]
    what = f"{where} holds the control token {match[0]!r} as text: {around!r}"
    return RowFault("control_token", what, mode)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _reads_flags_in_words(template: ChatTemplate) -> bool:
    """Return whether a word that holds a flag changes the render more than another word does."""
    probes: tuple[tuple[str, Mode], ...] = (("docs/thinkers", "no_think"), ("a/no_thinks", "think"))
    try:
        return any(
            _prompt(template, word, mode) != _prompt(template, "qzx", mode).replace("qzx", word)
            for word, mode in probes
        )
    except TemplateError:  # no system message: then no flags in one either
        return False


def _prompt(template: ChatTemplate, system: str, mode: Mode) -> str:
    messages = (Message(role="system", content=system), Message(role="user", content="Hi"))
    return template.prompt(messages, mode=mode)
