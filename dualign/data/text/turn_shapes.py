"""What a template writes around the turns of a row, learnt from the row itself.

Turns of one kind (mode, trace, text, calls, tools) look alike, so the first row of a kind is
rendered again with other words in the turn: what stays is the template's. Where a turn ends is told
by what comes next, too: some templates put a token after an answer (`<|im_end|>`), some another one
after a call (`<|call|>`), and some none, so that the turn ends where the next one begins
(`<|user|>`, `<|observation|>`). Models of all families stop at that token, and learn it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.think_tags import CLOSE
from dualign.errors import TemplateError

TextOf = Callable[[int, bool], str]
"""The text of a conversation's first `count` messages, with or without the next generation prompt.
"""
_TRACE, _ANSWER, _CALL, _NEXT = "dualigntrace", "dualignprobe", "dualigncall", "dualignnext"
TOOL = {
    "type": "function",
    "function": {
        "name": _CALL,
        "description": "Looks something up.",
        "parameters": {
            "type": "object",
            "properties": {_CALL: {"type": "string", "description": "What to look up."}},
            "required": [_CALL],
        },
    },
}
"""A tool of a trial conversation, with all that templates read of a schema."""
_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
"""A token by its looks, where the tokenizer isn't known."""
_NO_SPACE = re.compile(r"\S")
_MOST_SHAPES = 8
"""Shapes of one kind that are remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnShape:
    """The template's text around a turn's own.

    `head` stands before the trace, `closing` between it and the answer. After the turn's last word
    come `end`, which stops with the `token` that ends the turn, and `rest`, which isn't learnt.
    `follows`: the end is the first token of the next turn, so it isn't there yet in a turn that
    ends a text; `gap` is the space before it. `calls_first`: the text comes after the calls.
    """

    head: str = ""
    closing: str = ""
    end: str
    token: str
    rest: str = ""
    follows: bool = False
    gap: str = ""
    calls_first: bool = False

    @property
    def tail(self) -> str:
        """The end of a text that ends with the turn."""
        return self.gap if self.follows else self.end + self.rest


_Kind = tuple[str, bool, bool, bool, bool, str]
"""mode; whether there is a trace, text, a call, tools; the role of the message before"""


class TurnShapes:
    """The shapes of a template's turns, and the openings of its generation prompts.

    Args:
        texts: the function that renders a conversation.
        tokens: the tokenizer's added tokens, and whether each is special; empty if unknown.
        eos: the tokenizer's eos token, or "".
    """

    def __init__(
        self, texts: Callable[[Conversation], TextOf], tokens: Mapping[str, bool], eos: str
    ) -> None:
        self._texts = texts
        self._eos = eos
        self._patterns = _patterns(tokens)
        self._shapes: dict[_Kind, list[TurnShape]] = {}
        self._openings: dict[tuple[str, str, bool], list[str]] = {}
        self._headers: dict[Mode, tuple[str, ...]] = {}

    def shape(self, conversation: Conversation, which: int, upto: str) -> TurnShape:
        """Return the shape of message `which`, whose text `upto` ends with it.

        Raises:
            TemplateError: the turn has no end.
        """
        known = self._shapes.setdefault(_kind(conversation, which), [])
        for shape in known:
            if upto.endswith(shape.tail):
                return shape
        shape = self._learn(conversation, which)
        if len(known) < _MOST_SHAPES:
            known.append(shape)
        return shape

    def opening(self, conversation: Conversation, which: int, prompt: str, text_of: TextOf) -> str:
        """Return what the generation prompt of message `which` appends to the text before it.

        Rows are alike: a text that was an opening before, and ends this prompt, is this one's too.
        """
        role = conversation.messages[which - 1].role if which else ""
        known = self._openings.setdefault((conversation.mode, role, bool(conversation.tools)), [])
        for opening in known:
            if prompt.endswith(opening):
                return opening
        before = text_of(which, False)
        opening = prompt[len(before) :] if prompt.startswith(before) else ""
        known.append(opening)
        known.sort(key=len, reverse=True)
        if opening:
            headers = self._headers.get(conversation.mode, ())
            self._headers[conversation.mode] = tuple(dict.fromkeys((*headers, opening)))
        return opening

    def headers(self, mode: Mode) -> tuple[str, ...]:
        """Return the openings in a mode that were met."""
        return self._headers.get(mode, ())

    def next_token(self, ahead: str) -> str:
        """Return the token with which a text begins, with the space before it; "" without one."""
        gap = len(ahead) - len(ahead.lstrip())
        matches = (pattern.match(ahead, gap) for pattern in self._patterns)
        return next((ahead[: match.end()] for match in matches if match), "")

    def _learn(self, conversation: Conversation, which: int) -> TurnShape:
        message = conversation.messages[which]
        probe = _probe(message)
        before = conversation.messages[:which]
        text_of = self._texts(replace(conversation, messages=(*before, probe)))
        prompt, alone = text_of(which, True), text_of(which + 1, False)
        if probe.content and alone.count(_ANSWER) != 1:
            raise TemplateError(
                f"{conversation.place}: the template doesn't print an assistant's answer once: "
                f"{alone[-200:]!r}"
            )
        after = _after_words(alone, probe)
        following = self._following(replace(conversation, messages=(*before, probe)), probe)
        produced = alone[len(prompt) :] if alone.startswith(prompt) else alone
        head, closing = _around_trace(produced, probe)
        if message.tool_calls:
            answer = self._answer_end(conversation, which)
            end = self._end_of_call(after, following, answer)
        else:
            end = self._end_of_answer(after, following)
        calls_first = bool(message.tool_calls) and alone.rfind(_CALL) < alone.rfind(_ANSWER)
        return replace(end, head=head, closing=closing, calls_first=calls_first)

    def _following(self, conversation: Conversation, probe: Message) -> str:
        """Return the text after the turn's last word once another turn follows; "" if none can."""
        following = Message(role="user", content=_NEXT)
        if probe.tool_calls:
            call_id = probe.tool_calls[0].get("id")
            following = replace(following, role="tool", name=_CALL, tool_call_id=call_id)
        longer = replace(conversation, messages=(*conversation.messages, following))
        try:
            return _after_words(self._texts(longer)(len(longer.messages), False), probe)
        except TemplateError:
            return ""

    def _answer_end(self, conversation: Conversation, which: int) -> TurnShape | None:
        """Return the end of an answer in the place of a turn that calls."""
        answer = Message(role="assistant", content=_ANSWER)
        messages = (*conversation.messages[:which], answer)
        try:
            return self._learn(replace(conversation, messages=messages), which)
        except TemplateError:
            return None

    def _end_of_answer(self, after: str, following: str) -> TurnShape:
        common = common_prefix(after, following) if following else after
        for text in (common, after):
            if token := self._first_token(text):
                stop = text.index(token) + len(token)
                return TurnShape(end=after[:stop], token=token, rest=after[stop:])
        shape = None if after.strip() else self._by_next(after, following)
        if shape is not None:
            return shape
        stop = len(after.rstrip())
        return TurnShape(end=after[:stop], token=after.strip(), rest=after[stop:])

    def _end_of_call(self, after: str, following: str, answer: TurnShape | None) -> TurnShape:
        common = _common_words(after, following) if following else after
        by_next = self._by_next(after, following)
        if (
            answer is not None
            and answer.follows
            and (by_next or self._opens_unknown(after, following))
        ):
            return by_next or TurnShape(end="", token="")
        token = answer.token if answer is not None and not answer.follows else ""
        start = common.find(token) if token else -1
        if start < 0:
            token = self._last_token(common or after)
            start = after.rfind(token) if token else -1
        if start >= 0:
            stop = start + len(token)
            return TurnShape(end=token, token=token, rest=after[stop:])
        return by_next or TurnShape(end="", token="")

    def _by_next(self, after: str, following: str) -> TurnShape | None:
        """Return the end that is the first token of the next turn, if it begins with one."""
        ahead = following[len(after) :] if following.startswith(after) else following.lstrip()
        end = self.next_token(ahead)
        return TurnShape(end=end, token=end.strip(), follows=True, gap=after) if end else None

    def _opens_unknown(self, after: str, following: str) -> bool:
        """Return whether the next turn begins with what is a token in another tokenizer."""
        return _MARKER.match(following[len(after) :].lstrip()) is not None

    def _first_token(self, text: str) -> str:
        """Return the token that ends an answer: eos, or the first; "" without one."""
        if self._eos and self._eos in text:
            return self._eos
        return next((match[0] for each in self._patterns if (match := each.search(text))), "")

    def _last_token(self, text: str) -> str:
        """Return the token with which a text ends, but for space; "" if it ends otherwise."""
        for pattern in self._patterns:
            matches = pattern.findall(text)
            if matches and text.rstrip().endswith(matches[-1]):
                return str(matches[-1])
        return ""


def common_prefix(first: str, second: str) -> str:
    """Return the characters with which both texts begin."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return first[:length]
    return first[: next(i for i in range(length) if first[i] != second[i])]


def _common_words(first: str, second: str) -> str:
    """Return the characters with which `first` begins as `second` does, but for white space."""
    words = iter(_NO_SPACE.finditer(second))
    stop = 0
    for char in _NO_SPACE.finditer(first):
        other = next(words, None)
        if other is None or other[0] != char[0]:
            break
        stop = char.end()
    return first[:stop]


def trials() -> list[Conversation]:
    """Return conversations of several kinds, of which most templates render some."""
    function = {"name": _CALL, "arguments": {_CALL: _CALL}}
    call = {"id": "dualignid", "type": "function", "function": function}  # Mistral wants 9 letters
    answer = Message(role="assistant", content=_ANSWER)
    calls: list[tuple[Mode, str | None]] = [("no_think", None), ("think", _TRACE)]
    kinds: list[tuple[Mode, Message, bool]] = [
        ("no_think", answer, False),
        ("think", replace(answer, thinking=_TRACE), False),
        ("no_think", answer, True),
        ("think", replace(answer, thinking=_TRACE), True),
        *(
            (mode, replace(answer, content="", thinking=trace, tool_calls=(call,)), True)
            for mode, trace in calls
        ),
    ]
    return [
        Conversation(
            messages=(Message(role="user", content="Hi"), message),
            mode=mode,
            source="trial",
            row=0,
            tools=(TOOL,) if tools else (),
        )
        for mode, message, tools in kinds
    ]


def unknown_tokens(text: str, tokens: Mapping[str, bool]) -> list[str]:
    """Return what looks like a token in a text and is none of the tokenizer's, the last first."""
    return [marker for marker in dict.fromkeys(_MARKER.findall(text)[::-1]) if marker not in tokens]


def _patterns(tokens: Mapping[str, bool]) -> list[re.Pattern[str]]:
    """Return patterns of the special tokens, and of all added ones."""
    if not tokens:
        return [_MARKER]
    groups = ([token for token, special in tokens.items() if special], list(tokens))
    longest_first = (sorted(filter(None, group), key=len, reverse=True) for group in groups)
    return [re.compile("|".join(map(re.escape, group))) for group in longest_first if group]


def _kind(conversation: Conversation, which: int) -> _Kind:
    message = conversation.messages[which]
    return (
        conversation.mode,
        bool(message.thinking),
        bool(message.content.strip()),
        bool(message.tool_calls),
        bool(conversation.tools),
        conversation.messages[which - 1].role if which else "",
    )


def _probe(message: Message) -> Message:
    """Return the message with other words in each part that it has."""
    calls = []
    for call in message.tool_calls[-1:]:
        function = {"name": _CALL, "arguments": {_CALL: _CALL}}
        calls.append({**call, "function": function} if "function" in call else function)
    return replace(
        message,
        thinking=_TRACE if message.thinking else None,
        content=_ANSWER if message.content.strip() else "",
        tool_calls=tuple(calls),
    )


def _after_words(text: str, probe: Message) -> str:
    """Return the text after the last of the probe's words."""
    words = [_CALL] if probe.tool_calls else []
    words += [_ANSWER] if probe.content else []
    stops = [text.rfind(word) + len(word) for word in words if word in text]
    return text[max(stops) :] if stops else ""


def _around_trace(produced: str, probe: Message) -> tuple[str, str]:
    """Return the text before the trace, and from there to the answer or the end of the thinking."""
    head, trace, rest = produced.partition(_TRACE)
    if not trace:
        return "", ""
    if CLOSE in rest:
        return head, rest[: rest.index(CLOSE) + len(CLOSE)]
    return head, rest.partition(_ANSWER)[0] if probe.content else ""
