"""Prompts of a finished model: its own chat template, in the mode that its switch sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dualign.data.conversation import Mode
from dualign.data.text.template import ChatTemplate
from dualign.data.text.template_texts import named_templates
from dualign.switch import ADVICE, ENABLE_THINKING, Switch, tried


def switch_of(tokenizer: PreTrainedTokenizerBase, named: Switch | None = None) -> Switch | None:
    """Return what switches a model's modes: `named`, else what its template states or reads."""
    if named is not None:
        return named
    text = named_templates(tokenizer).get("default", "")
    special_tokens = dict(tokenizer.special_tokens_map)
    return ChatTemplate(name="", text=text, special_tokens=special_tokens).switch


def saved_switch(folder: Path) -> Switch:
    """Return what switches the modes of a saved model, read from its template's file alone."""
    file = folder / "chat_template.jinja"
    if not file.is_file():
        return ENABLE_THINKING
    template = ChatTemplate(name=str(file), text=file.read_text(encoding="utf-8"))
    return ENABLE_THINKING if template.switch is None else template.switch


def arguments(
    messages: Sequence[Mapping[str, Any]],
    mode: Mode,
    switch: Switch | None,
    own: Mapping[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return messages and variables for `apply_chat_template` that ask in a mode; `own` are the
    variables of a row.
    """
    switch, own = ENABLE_THINKING if switch is None else switch, own or {}
    turns = switch.with_system([dict(turn) for turn in messages], mode)
    return turns, {**own, **switch.variables(mode, own)}


def prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    mode: Mode,
    switch: Switch | None,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render the text after which the model answers; a template can raise anything.

    An assistant's turn at the end is the start of its answer, which it goes on from.
    """
    turns, variables = arguments(messages, mode, switch)
    if tools:
        variables["tools"] = [dict(tool) for tool in tools]
    is_begun = turns[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        turns,
        add_generation_prompt=not is_begun,
        continue_final_message=is_begun,
        tokenize=False,
        **variables,
    )
    return str(text)


def one_prompt(named: Switch | None) -> str:
    """Say that both modes have one prompt, what was tried, and what to write."""
    return f"both modes have the same prompt. Tried: {tried(named)}. {ADVICE}"
