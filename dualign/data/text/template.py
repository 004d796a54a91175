"""Chat templates: jinja texts of ours, of a file or of a tokenizer, and the texts they render."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import jinja2

from dualign.data.conversation import MODES, Conversation, Message, Mode
from dualign.data.text import sandbox
from dualign.data.text.checks import find_tags
from dualign.data.text.document_marks import document_marks
from dualign.data.text.installed import installed_text, relatives
from dualign.data.text.modes import find_switch, stated_switch, tells_apart
from dualign.data.text.template_texts import added_tokens, template_text, tool_use_text
from dualign.data.text.trace_form import (
    TraceForm,
    as_json,
    find_trace_form,
    message_dict,
    with_json_arguments,
)
from dualign.data.text.turn_shapes import TOOL, TextOf, TurnShapes, trials
from dualign.errors import TemplateError
from dualign.switch import ENABLE_THINKING, Switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESERVED = frozenset(
    {"messages", "tools", "enable_thinking", "add_generation_prompt", "documents", "strftime_now"}
)

_OTHER: dict[Mode, Mode] = {"think": "no_think", "no_think": "think"}


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A jinja template. `special_tokens` and `template_kwargs` are given to it in every render.

    `tool_use` is the text for rows with tools, if that is another one. `named_switch` comes before
    a switch that is found. `tokens` are the tokenizer's added tokens, and whether each is special.
    `folds_system`: the text has no system role of its own, and puts a system text into the user's
    turn. `document_marks` stand before and after raw text, which the template doesn't render.
    """

    name: str
    text: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, bool] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tool_use: str | None = None
    named_switch: Switch | None = None
    folds_system: bool = False
    document_marks: tuple[str, str] = ("", "")

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

    @property
    def _setter(self) -> Switch:
        return ENABLE_THINKING if self.switch is None else self.switch  # an empty one sets nothing

    @cached_property
    def switches(self) -> bool:
        """Whether a plain question has another prompt in each mode."""
        try:
            return tells_apart(self._setter, self._ask)
        except TemplateError:
            return False

    def setting(self, conversation: Conversation) -> int:
        """Return a number that tells how the row is asked: rows of one number, but for its last
        bit, get one prompt for the same question. The last bit is set if the other mode's prompt is
        the same and the row has no variables of its own, so that nothing known switches it. 0 where
        enable_thinking tells the modes apart, as in most families.
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
            asked = self._question(conversation, system)
            other = replace(conversation, mode=_OTHER[conversation.mode])
            alike = not conversation.template_kwargs and asked == self._question(other, system)
            self._settings[text] = _number(asked) << 1 | alike
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
        fixed = {**self.special_tokens, **self.template_kwargs, "documents": None}
        try:
            return self._text(turns, {**fixed, "tools": None, **variables}, prompt=True)
        except TemplateError:  # it may need tools
            return self._text(turns, {**fixed, "tools": [TOOL], **variables}, prompt=True)

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

    @cached_property
    def shapes(self) -> TurnShapes:
        """What the template writes around turns."""
        return TurnShapes(self.texts, self.tokens, self.special_tokens.get("eos_token", ""))

    @property
    def end_of_turn(self) -> str:
        """The token that ends an answer, such as `<|im_end|>`; "" if nothing does.

        Raises:
            TemplateError: no trial conversation can be rendered.
        """
        return self.ends[0] if self.ends else ""

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The tokens that end a turn: an answer's first, then those of calls and other modes; none
        if nothing ends an answer.

        Turns that don't continue their prompt, and so can't be trained, tell it only where no answer
        does.
        """
        answers, unproven, calls = list[str](), list[str](), list[str]()
        errors = []
        for trial in trials():
            which, text_of = len(trial.messages) - 1, self.texts(trial)
            try:
                upto = text_of(which + 1, False)
                token = self.shapes.shape(trial, which, upto).token
                proven = upto.startswith(text_of(which, True))
            except TemplateError as error:
                errors.append(error)
                continue
            of_call = bool(trial.messages[which].tool_calls)
            (unproven if not proven else calls if of_call else answers).append(token)
        if not (answers or unproven or calls):
            message = str(errors[0]).removeprefix(f"{trials()[0].place}: ")
            raise TemplateError(message) from errors[0]
        first = list(filter(None, answers)) or list(filter(None, unproven))[:1]
        return tuple(dict.fromkeys(filter(None, (*first, *calls)))) if first else ()

    @cached_property
    def tags(self) -> tuple[str, str]:
        """The think tags around a trace; ours where the template writes none."""
        for trial in trials():
            which = len(trial.messages) - 1
            if trial.mode != "think":
                continue
            try:
                text_of = self.texts(trial)
                shape = self.shapes.shape(trial, which, text_of(which + 1, False))
                return find_tags(text_of(which, True)[-200:] + shape.head, shape.closing)
            except TemplateError:
                continue
        return find_tags("", "")

    @cached_property
    def relatives(self) -> "tuple[ChatTemplate, ...]":
        """The installed templates of this one's family that ask alike."""
        others = (
            replace(self, name=name, text=installed_text(name), tool_use=None)
            for name in relatives(self.text)
        )
        return tuple(other for other in others if self.asks_like(other))

    def asks_like(self, other: "ChatTemplate") -> bool:
        """Return whether both give the same generation prompts, in both modes, at the first turn and
        later.
        """
        question, answer = (
            Message(role="user", content="Hi"),
            Message(role="assistant", content="Hello"),
        )
        starts = [(), (Message(role="system", content="Be brief."),), (question, answer)]
        return all(
            _asked(self, (*start, question), mode) == _asked(other, (*start, question), mode)
            for start in starts
            for mode in MODES
        )

    @cached_property
    def trace_form(self) -> TraceForm:
        """Where the template reads a turn's trace."""
        variables = self._variables("think", (), {})
        return find_trace_form(self.text, lambda turns: self._text(turns, variables, prompt=False))

    def _variables(
        self, mode: Mode, tools: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the template's variables, without the messages."""
        variables = {**self.special_tokens, **self.template_kwargs, **template_kwargs}
        return {
            **{key: value for key, value in variables.items() if key not in _RESERVED},
            "tools": [dict(tool) for tool in tools] or None,
            "documents": None,
            **self._setter.variables(mode, template_kwargs),
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
            needs = " (it renders rows with tools alone)" if self._needs_tools(variables) else ""
            raise TemplateError(
                f"template {self.name!r} can't render it: {error}{needs}"
            ) from error

    def _needs_tools(self, variables: Mapping[str, Any]) -> bool:
        """Return whether a question without tools can't be rendered, and one with tools can."""
        if variables.get("tools"):
            return False
        question = [{"role": "user", "content": "Hi"}]
        try:
            sandbox.render(self.text, question, {**variables, "add_generation_prompt": False})
        except (jinja2.TemplateError, TypeError, ValueError):
            with suppress(jinja2.TemplateError, TypeError, ValueError):
                with_tool = {**variables, "tools": [TOOL], "add_generation_prompt": False}
                sandbox.render(self.text, question, with_tool)
                return True
        return False

    def _dicts(
        self, messages: Sequence[Message], variables: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return messages as this template expects them."""
        form = self.trace_form if any(message.thinking for message in messages) else "content"
        dicts = [message_dict(message, form) for message in messages]
        arguments = [call["arguments"] for message in messages for call in message.functions]
        if not arguments or self._prints(arguments, dicts, variables):
            return dicts
        as_text = [with_json_arguments(entry) for entry in dicts]
        texts = [as_json(item) for item in arguments]
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


def _asked(template: ChatTemplate, messages: tuple[Message, ...], mode: Mode) -> str | None:
    try:
        return template.prompt(messages, mode=mode)
    except TemplateError:
        return None


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
        text=template_text(name_or_path, tokenizer),
        tool_use=tool_use_text(name_or_path, tokenizer),
        special_tokens=dict(tokenizer.special_tokens_map) if tokenizer is not None else {},
        tokens=added_tokens(tokenizer) if tokenizer is not None else {},
        document_marks=document_marks(tokenizer) if tokenizer is not None else ("", ""),
        template_kwargs=dict(template_kwargs or {}),
    )
    if not template.end_of_turn:
        raise TemplateError(_no_end(template))
    return template


def _no_end(template: ChatTemplate) -> str:
    """Say why no token ends an answer: the template writes none, or one that the tokenizer lacks."""
    if template.tokens and (end := replace(template, tokens={}).end_of_turn):
        return (
            f"template {template.name!r} ends an answer with {end!r}, which is no token of this "
            "tokenizer, so a model trained on it never learns to stop. Use the tokenizer of the "
            "template's family, or a template of this one's."
        )
    return (
        f"template {template.name!r} puts nothing after an assistant's answer, so a model "
        "trained on it never learns to stop. Expected an end-of-turn token there."
    )


def _number(text: str) -> int:
    """Return 62 bits of a text's hash, never 0."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 2 or 1
