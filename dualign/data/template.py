"""Conversation -> Rendered: the text of a row, and the parts of it that the model has to produce.

What a model must produce in a turn is what follows the generation prompt of that turn, up to and
with the end-of-turn token. So the spans aren't searched for: each turn is rendered as it would be
asked for, and the row's text has to start with that. A row for which this doesn't hold is refused.
Example, `dualign` template, no_think (| marks the span):

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n|Hello<|im_end|>|\n
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from dualign.data.conversation import Conversation, Message, Mode
from dualign.data.dates import pin_date
from dualign.data.settings import Supervise
from dualign.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESERVED = frozenset(
    {"messages", "tools", "enable_thinking", "add_generation_prompt", "documents"}
)
_PROBE = "dualignprobe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The text of a row; `spans` are the (start, end) characters that are supervised."""

    text: str
    spans: tuple[tuple[int, int], ...]
    mode: Mode
    source: str
    row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """A jinja template. `special_tokens` and `template_kwargs` are given to it in every render."""

    name: str
    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        mode: Mode,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text after which the model answers in `mode`."""
        return self._text(self._dicts(messages), mode, tools, template_kwargs or {}, prompt=True)

    def render(self, conversation: Conversation, *, supervise: Supervise) -> Rendered:
        """The row's text with its supervised spans; TemplateError where a span can't be proven."""
        spans: list[tuple[int, int]]
        if conversation.template_kwargs.get("verbatim"):
            text = conversation.messages[0].content + self.special_tokens.get("eos_token", "")
            spans = [(0, len(text))]
        else:
            text, dicts = self._full(conversation)
            spans = (
                [(0, len(text))]
                if supervise == "all"
                else [
                    self._span(conversation, turn, dicts, text)
                    for turn in _supervised(conversation, supervise)
                ]
            )
        return Rendered(
            text=text,
            spans=tuple(spans),
            mode=conversation.mode,
            source=conversation.source,
            row=conversation.row,
        )

    @property
    def end_of_turn(self) -> str:
        """What closes an assistant turn, such as `<|im_end|>`."""
        return self._turn_tail().strip()

    def _full(self, conversation: Conversation) -> tuple[str, list[dict[str, Any]]]:
        dicts = self._dicts(conversation.messages)
        try:
            return self._of(conversation, dicts, prompt=False), dicts
        except TemplateError as error:
            raise TemplateError(f"{_place(conversation)}: {error}") from error

    def _span(
        self, conversation: Conversation, turn: int, dicts: list[dict[str, Any]], text: str
    ) -> tuple[int, int]:
        """The characters that turn `turn` must produce: after its generation prompt, to its
        end-of-turn.
        """
        place = f"{_place(conversation)}, message {turn}"
        prompt = self._of(conversation, dicts[:turn], prompt=True)
        upto = (
            text
            if turn == len(dicts) - 1
            else self._of(conversation, dicts[: turn + 1], prompt=False)
        )
        if not upto.startswith(prompt):
            found = "the turn doesn't start with the generation prompt of its mode"
            raise self._unproven(place, found, prompt, upto)
        if not text.startswith(upto):
            raise self._unproven(
                place, "the template rewrites the turn once others follow", upto, text
            )
        tail = self._turn_tail()
        if not upto.endswith(tail) or len(upto) - len(tail) < len(prompt):
            found = f"the turn doesn't end with the end-of-turn {tail!r} but with {upto[-60:]!r}"
            raise TemplateError(f"{place}: template {self.name!r}: {found}.")
        self._check_nothing_lost(place, conversation.messages[turn], upto[len(prompt) :])
        return len(prompt), len(upto) - (len(tail) - len(tail.rstrip()))

    def _check_nothing_lost(self, place: str, message: Message, span: str) -> None:
        wanted = {"trace": message.thinking or "", "answer": message.content}
        wanted |= {f"call of {name}": name for name in _called(message)}
        lost = [what for what, text in wanted.items() if text.strip() not in span]
        if lost:
            what = " and the ".join(lost)
            raise TemplateError(
                f"{place}: template {self.name!r} leaves out the {what}: the model "
                f"would be trained on {span[:200]!r}. Use a template that renders it (dualign)."
            )

    def _unproven(self, place: str, found: str, expected: str, text: str) -> TemplateError:
        common = _common_length(expected, text)
        start = max(0, common - 60)
        return TemplateError(
            f"{place}: template {self.name!r}: {found}, so what the model must "
            f"produce can't be told. Expected {expected[start : common + 80]!r}, "
            f"the row has {text[start : common + 80]!r}. "
            "Use a template that leaves earlier turns as they were (dualign), or supervise: last."
        )

    def _of(self, conversation: Conversation, dicts: list[dict[str, Any]], *, prompt: bool) -> str:
        return self._text(
            dicts,
            conversation.mode,
            conversation.tools,
            conversation.template_kwargs,
            prompt=prompt,
        )

    def _text(
        self,
        dicts: list[dict[str, Any]],
        mode: Mode,
        tools: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        *,
        prompt: bool,
    ) -> str:
        given = {**self.special_tokens, **self.template_kwargs, **template_kwargs}
        given = {key: value for key, value in given.items() if key not in _RESERVED}
        text, pinned = pin_date(self.text, given.get("date"))
        try:
            rendered, _ = render_jinja_template(
                conversations=[dicts],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=text,
                add_generation_prompt=prompt,
                enable_thinking=mode == "think",
                **given,
                **pinned,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TemplateError(f"template {self.name!r} can't render it: {error}") from error
        return str(rendered[0])

    def _dicts(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        as_field = "reasoning_content" in self.text
        return [_message_dict(message, as_field=as_field) for message in messages]

    def _turn_tail(self) -> str:
        return _turn_tail(
            self.name,
            self.text,
            json.dumps(dict(self.special_tokens), sort_keys=True),
            json.dumps(dict(self.template_kwargs), sort_keys=True, default=str),
        )


def load_template(
    name_or_path: str,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """A template of `dualign/data/templates`, the tokenizer's own ("tokenizer"), or a `.jinja` file,
    tried once.

    The tokenizer's special tokens are given to the template, as transformers does.
    `template_kwargs` go to every render.
    """
    template = ChatTemplate(
        name=name_or_path,
        text=_template_text(name_or_path, tokenizer),
        special_tokens=dict(tokenizer.special_tokens_map) if tokenizer is not None else {},
        template_kwargs=dict(template_kwargs or {}),
    )
    if not template.end_of_turn:
        raise TemplateError(
            f"template {name_or_path!r} puts nothing after an assistant's answer, so a model "
            "trained on it never learns to stop. Expected an end-of-turn token there."
        )
    return template


def _template_text(name_or_path: str, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    if name_or_path == "tokenizer":
        if tokenizer is None or not tokenizer.chat_template:
            raise TemplateError(
                "template 'tokenizer': the tokenizer has no chat template. Name one: dualign."
            )
        return str(tokenizer.get_chat_template())
    if name_or_path.endswith(".jinja"):
        path = Path(name_or_path)
        if not path.is_file():
            raise TemplateError(
                f"template {name_or_path!r}: no such file (looked at {path.absolute()})"
            )
        return path.read_text(encoding="utf-8")
    folder = files("dualign.data") / "templates"
    known = sorted(
        file.name.removesuffix(".jinja")
        for file in folder.iterdir()
        if file.name.endswith(".jinja")
    )
    if name_or_path not in known:
        near = get_close_matches(name_or_path, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise TemplateError(
            f"unknown template {name_or_path!r}{hint}. "
            f"Expected {', '.join(known)}, tokenizer, or a .jinja file."
        )
    return (folder / f"{name_or_path}.jinja").read_text(encoding="utf-8")


def _supervised(conversation: Conversation, supervise: Supervise) -> list[int]:
    turns = [
        turn for turn, message in enumerate(conversation.messages) if message.role == "assistant"
    ]
    if supervise == "last":
        turns = turns[-1:]
    return [turn for turn in turns if conversation.messages[turn].train]


def _message_dict(message: Message, *, as_field: bool) -> dict[str, Any]:
    """A message as templates expect it. A template that reads `reasoning_content` gets the trace
    there; any other gets it at the head of the content. Never both: a template that knows both
    would print it twice.
    """
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None and as_field:
        made["reasoning_content"] = message.thinking
    elif message.thinking is not None:
        made["content"] = f"<think>\n{message.thinking}\n</think>\n\n{message.content}"
    if message.tool_calls:
        made["tool_calls"] = [dict(call) for call in message.tool_calls]
    return made


def _called(message: Message) -> list[str]:
    return [str(call.get("function", call).get("name", "")) for call in message.tool_calls]


@lru_cache(maxsize=64)
def _turn_tail(name: str, text: str, special_tokens: str, template_kwargs: str) -> str:
    """What the template puts after an answer: the end-of-turn, and whitespace that follows it."""
    template = ChatTemplate(
        name=name,
        text=text,
        special_tokens=json.loads(special_tokens),
        template_kwargs=json.loads(template_kwargs),
    )
    probe = Conversation(
        messages=(Message(role="user", content="Hi"), Message(role="assistant", content=_PROBE)),
        mode="no_think",
        source="probe",
        row=0,
    )
    rendered, _ = template._full(probe)
    if rendered.count(_PROBE) != 1:
        raise TemplateError(
            f"template {name!r} doesn't print an assistant's answer once: {rendered!r}"
        )
    return rendered.split(_PROBE)[1]


def _place(conversation: Conversation) -> str:
    return f"{conversation.source}, row {conversation.row}"


def _common_length(one: str, other: str) -> int:
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
