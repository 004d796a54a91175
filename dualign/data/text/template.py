"""Chat templates: jinja texts of ours, of a file or of a tokenizer, and the texts they render."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from dualign.data.conversation import MODES, Conversation, Message, Mode
from dualign.data.text import sandbox
from dualign.data.text.modes import find_switch, stated_switch
from dualign.data.think_tags import CLOSE, OPEN
from dualign.errors import TemplateError
from dualign.switch import ENABLE_THINKING, Switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextOf = Callable[[int, bool], str]
"""The text of a conversation's first `count` messages, with or without the next generation prompt.
"""
_RESERVED = frozenset(
    {"messages", "tools", "enable_thinking", "add_generation_prompt", "documents", "strftime_now"}
)
_PROBE = "dualignprobe"


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A jinja template. `special_tokens` and `template_kwargs` are given to it in every render.

    `tool_use` is the text for rows with tools, if that is another one. `named_switch` comes before
    a switch that is found.
    """

    name: str
    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tool_use: str | None = None
    named_switch: Switch | None = None

    def with_kwargs(self, template_kwargs: Mapping[str, Any]) -> "ChatTemplate":
        """Return the template with more variables for every render; a row's own come before them."""
        return replace(self, template_kwargs={**self.template_kwargs, **template_kwargs})

    def with_switch(self, switch: Switch | None) -> "ChatTemplate":
        """Return the template with the switch that a recipe names."""
        return self if switch is None else replace(self, named_switch=switch)

    def for_tools(self, tools: Sequence[Mapping[str, Any]]) -> "ChatTemplate":
        """Return the template of a row: rows with tools have their own in some families."""
        return self._tool_template if tools and self.tool_use is not None else self

    @cached_property
    def _tool_template(self) -> "ChatTemplate":
        switch = self.named_switch or self.switch
        return replace(self, text=self.tool_use or "", tool_use=None, named_switch=switch)

    @cached_property
    def switch(self) -> Switch | None:
        """What switches the modes: named, stated by the template, or found; None: nothing does."""
        named = self.named_switch if self.named_switch is not None else stated_switch(self.text)
        return named if named is not None else find_switch(self.text, self._ask)

    @cached_property
    def switches(self) -> bool:
        """Whether a plain question has another prompt in each mode."""
        question = (Message(role="user", content="Hi"),)
        try:
            return len({self.prompt(question, mode=mode) for mode in MODES}) > 1
        except TemplateError:
            return False

    def setting(self, conversation: Conversation) -> int:
        """Return a number that tells how the row is asked: rows of one number get one prompt for
        the same question. 0 where enable_thinking tells the modes apart, as in most families.
        """
        template = self.for_tools(conversation.tools)
        if template.switches and template.switch == ENABLE_THINKING:
            return 0
        system = [turn for turn in conversation.messages[:1] if turn.role == "system"]
        key = [
            conversation.mode,
            [turn.content for turn in system],
            conversation.template_kwargs,
            conversation.tools,
        ]
        text = _number(json.dumps(key, sort_keys=True, default=str))
        if text not in self._settings:
            self._settings[text] = _number(self._question(conversation, system))
        return self._settings[text]

    @cached_property
    def _settings(self) -> dict[int, int]:
        return {}

    def _question(self, conversation: Conversation, system: list[Message]) -> str:
        question = [*system, Message(role="user", content="Hi")]
        try:
            return self.prompt(
                question,
                mode=conversation.mode,
                tools=conversation.tools,
                template_kwargs=conversation.template_kwargs,
            )
        except TemplateError:  # the row was rendered, so its own question would be
            return str(conversation.messages)

    def _ask(self, system: str | None, variables: Mapping[str, Any]) -> str:
        turns: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        fixed = {**self.special_tokens, **self.template_kwargs, "tools": None, "documents": None}
        return self._text(turns, {**fixed, **variables}, prompt=True)

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        mode: Mode,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Render the text after which the model answers in `mode`."""
        template = self.for_tools(tools)
        variables = template._variables(mode, tools, template_kwargs or {})
        turns = template._switched(template._dicts(messages, variables), mode)
        return template._text(turns, variables, prompt=True)

    def texts(self, conversation: Conversation) -> TextOf:
        """Return the function that renders the conversation's first messages; its errors name the
        row.
        """
        template, mode = self.for_tools(conversation.tools), conversation.mode
        variables = template._variables(mode, conversation.tools, conversation.template_kwargs)
        dicts = template._dicts(conversation.messages, variables)

        def text_of(count: int, prompt: bool) -> str:
            try:
                messages = template._switched(dicts[:count], mode)
                return template._text(messages, variables, prompt=prompt)
            except TemplateError as error:
                raise TemplateError(f"{conversation.place}: {error}") from error

        return text_of

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
        return opening

    @cached_property
    def _openings(self) -> dict[tuple[Mode, str, bool], list[str]]:
        return {}

    @property
    def end_of_turn(self) -> str:
        """The text that closes an assistant turn, such as `<|im_end|>`."""
        return self.turn_tail.strip()

    @cached_property
    def turn_tail(self) -> str:
        """The text after an answer: the end-of-turn, and whitespace that follows it."""
        messages = (Message(role="user", content="Hi"), Message(role="assistant", content=_PROBE))
        variables = self._variables("no_think", (), {})
        turns = self._switched(self._dicts(messages, variables), "no_think")
        rendered = self._text(turns, variables, prompt=False)
        if rendered.count(_PROBE) != 1:
            raise TemplateError(
                f"template {self.name!r} doesn't print an assistant's answer once: {rendered!r}"
            )
        return rendered.split(_PROBE)[1]

    def _variables(
        self, mode: Mode, tools: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the template's variables, without the messages."""
        variables = {**self.special_tokens, **self.template_kwargs, **template_kwargs}
        return {
            **{key: value for key, value in variables.items() if key not in _RESERVED},
            "tools": [dict(tool) for tool in tools] or None,
            "documents": None,
            **(self.switch or ENABLE_THINKING).variables(mode, template_kwargs),
        }

    def _switched(self, messages: list[dict[str, Any]], mode: Mode) -> list[dict[str, Any]]:
        """Return the messages with the text that switches to the mode, where a text does."""
        return self.switch.with_system(messages, mode) if self.switch else messages

    def _text(
        self, messages: list[dict[str, Any]], variables: Mapping[str, Any], *, prompt: bool
    ) -> str:
        try:
            return sandbox.render(
                self.text, messages, {**variables, "add_generation_prompt": prompt}
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            if isinstance(error, TemplateError):
                raise
            raise TemplateError(f"template {self.name!r} can't render it: {error}") from error

    def _dicts(
        self, messages: Sequence[Message], variables: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return messages as this template expects them."""
        as_field = "reasoning_content" in self.text
        dicts = [_message_dict(message, as_field=as_field) for message in messages]
        arguments = [call["arguments"] for message in messages for call in message.functions]
        if not arguments or self._prints(arguments, dicts, variables):
            return dicts
        as_text = [_with_json_arguments(entry) for entry in dicts]
        texts = [_json(item) for item in arguments]
        return as_text if self._prints(texts, as_text, variables) else dicts

    def _prints(
        self,
        arguments: Sequence[Mapping[str, Any] | str],
        dicts: list[dict[str, Any]],
        variables: Mapping[str, Any],
    ) -> bool:
        """Return whether the arguments of calls are rendered: objects not as Python prints them,
        texts as they are.

        Some templates join them to other texts, and engines then give them JSON; more iterate over
        them or print them by tojson.
        """
        try:
            text = self._text(dicts, variables, prompt=False)
        except TemplateError:
            return False
        return all(
            item in text if isinstance(item, str) else not item or str(item) not in text
            for item in arguments
        )


def load_template(
    name_or_path: str,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """Load a template of `dualign/data/templates`, the tokenizer's own ("tokenizer"), or a `.jinja`
    file, tried once.

    The tokenizer's special tokens are given to the template, as transformers does.
    `template_kwargs` go to every render.
    """
    template = ChatTemplate(
        name=name_or_path,
        text=_template_text(name_or_path, tokenizer),
        tool_use=_tool_use_text(name_or_path, tokenizer),
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
        named = named_templates(tokenizer)
        if "default" not in named:
            raise TemplateError(
                f"template 'tokenizer': the tokenizer has the templates {', '.join(sorted(named))} and "
                "none named default, so which one to take can't be told. Name a .jinja file."
            )
        return named["default"]
    if name_or_path.endswith(".jinja"):
        path = Path(name_or_path)
        if not path.is_file():
            raise TemplateError(
                f"template {name_or_path!r}: no such file (looked at {path.absolute()})"
            )
        return path.read_text(encoding="utf-8")
    folder = files("dualign.data") / "templates"
    names = sorted(
        file.name.removesuffix(".jinja")
        for file in folder.iterdir()
        if file.name.endswith(".jinja")
    )
    if name_or_path not in names:
        near = get_close_matches(name_or_path, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise TemplateError(
            f"unknown template {name_or_path!r}{hint}. "
            f"Expected {', '.join(names)}, tokenizer, or a .jinja file."
        )
    return (folder / f"{name_or_path}.jinja").read_text(encoding="utf-8")


def named_templates(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Return a tokenizer's templates by name; a single one is `default`."""
    templates = tokenizer.chat_template or {}
    return {"default": templates} if isinstance(templates, str) else dict(templates)


def _tool_use_text(name_or_path: str, tokenizer: "PreTrainedTokenizerBase | None") -> str | None:
    """Return the template that transformers takes for rows with tools, if it is another one."""
    if name_or_path != "tokenizer" or tokenizer is None:
        return None
    return named_templates(tokenizer).get("tool_use")


def _number(text: str) -> int:
    """Return 62 bits of a text's hash, never 0."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 2 or 1


def _message_dict(message: Message, *, as_field: bool) -> dict[str, Any]:
    """Return a message as templates expect it. A template that reads `reasoning_content` gets the
    trace there; any other gets it at the head of the content. Never both: a template that knows
    both would print it twice.
    """
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None and as_field:
        # `thinking` is the name that some templates know; transformers gives both.
        entry |= {"thinking": message.thinking, "reasoning_content": message.thinking}
    elif message.thinking is not None:
        entry["content"] = f"{OPEN}\n{message.thinking}\n{CLOSE}\n\n{message.content}"
    if message.tool_calls:
        entry["tool_calls"] = [dict(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        entry["name"] = message.name
    return entry


def _with_json_arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose calls have their arguments as JSON text."""
    calls = [
        {
            **call,
            "function": {**call["function"], "arguments": _json(call["function"]["arguments"])},
        }
        for call in entry.get("tool_calls", ())
    ]
    return {**entry, "tool_calls": calls} if calls else dict(entry)


def _json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)
