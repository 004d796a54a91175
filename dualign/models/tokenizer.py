"""The tokenizer of a model: its template, its end of turn, its pad token, its end ids."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dualign.data.text.installed import is_relative
from dualign.data.text.modes import stated_switch, switch_line
from dualign.data.text.system_role import folding_system, with_fold
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.text.template_texts import named_templates
from dualign.errors import CheckpointError, TemplateError
from dualign.models.new_tokens import NewToken, add_new_tokens
from dualign.models.source import ModelSource, resolve_model
from dualign.switch import Switch

_PAD_NAMES = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


def load_tokenizer(
    source: ModelSource,
    template: str,
    template_kwargs: Mapping[str, Any],
    switch: Switch | None = None,
    *,
    folds_system: bool = False,
    new_tokens: Sequence[NewToken] = (),
) -> tuple[PreTrainedTokenizerBase, ChatTemplate]:
    """Load a tokenizer for training, as it will be saved.

    The template is set, the end of turn is the eos token, and the pad token is another one: labels
    mask padding, and a masked end of turn would never be learned.

    Args:
        template: a name that ships, `tokenizer`, `trl:NAME` or a .jinja file.
        template_kwargs: variables of the template, which become defaults of the saved one.
        switch: what switches the modes, which the saved template states; None: what the template
            reads.
        folds_system: rows are repaired for a template without a system role, which is saved so
            that it asks alike.
        new_tokens: added to those that it has.
    """
    tokenizer = read_tokenizer(source)
    if new_tokens:
        add_new_tokens(tokenizer, new_tokens)
    chat = load_template(template, tokenizer=tokenizer)
    chat = folding_system(chat) if folds_system else chat
    tokenizer.chat_template = _saved(tokenizer, chat, template_kwargs, switch)
    end = end_of_turn(chat, tokenizer)
    if tokenizer.eos_token != end:
        tokenizer.eos_token = end
        # It may write eos_token out.
        chat = replace(chat, special_tokens=dict(tokenizer.special_tokens_map))
    if tokenizer.pad_token is None or tokenizer.pad_token == end:
        tokenizer.pad_token = _pad_token(tokenizer, end)
    return tokenizer, chat.with_kwargs(template_kwargs).with_switch(switch)


def _saved(
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatTemplate,
    template_kwargs: Mapping[str, Any],
    switch: Switch | None,
) -> str | dict[str, str]:
    """Return the template to save: all of the tokenizer's named ones, if they are trained with."""
    is_own = chat.name == "tokenizer" and isinstance(tokenizer.chat_template, dict)
    texts = named_templates(tokenizer) if is_own else {"default": _served(tokenizer, chat)}
    if chat.folds_system:
        texts = {name: with_fold(text) for name, text in texts.items()}
    stated = None if switch == chat.switch else switch
    saved = {name: saved_template(text, template_kwargs, stated) for name, text in texts.items()}
    return saved if is_own else saved["default"]


def _served(tokenizer: PreTrainedTokenizerBase, chat: ChatTemplate) -> str:
    """Return the template to save: the model's own, where it was trained with another one of its
    family that asks alike.
    """
    own = tokenizer.chat_template
    if isinstance(own, str) and is_relative(own, chat.name):
        return own if chat.asks_like(replace(chat, text=own)) else chat.text
    return chat.text


def saved_template(text: str, kwargs: Mapping[str, Any], switch: Switch | None) -> str:
    """Return a template as a stage saves it: with defaults, and with the switch that it doesn't have
    by itself.
    """
    text = with_defaults(text, kwargs)
    return text if switch is None or switch == stated_switch(text) else switch_line(switch) + text


def load_chat_tokenizer(reference: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a finished model, with its chat template.

    Raises:
        CheckpointError: the tokenizer can't be read, or has no chat template to ask the model by.
    """
    source = resolve_model(reference)
    tokenizer = read_tokenizer(source)
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"{reference}: the tokenizer has no chat template, so there is no way to ask; "
            "add a chat_template.jinja to the folder"
        )
    return tokenizer


def read_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it was saved.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        return AutoTokenizer.from_pretrained(source.tokenizer, revision=source.revision)
    except Exception as error:  # no connection, or whatever a broken file leads to
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{source.tokenizer}: its tokenizer can't be read ({reason}). Expected a model folder, "
            "written with a slash (./NAME), or a hub id that is in the cache or can be reached"
        ) from error


def with_defaults(text: str, kwargs: Mapping[str, Any]) -> str:
    """Return a template with `kwargs` as defaults, so that it renders everywhere as in training.

    `{"year": 2025}` puts `{%- set year = year if year is defined else 2025 %}` on top.
    """
    lines = [
        f"{{%- set {name} = {name} if {name} is defined else {_literal(value)} %}}\n"
        for name, value in kwargs.items()
    ]
    # A template of an earlier stage has them already.
    return "".join(line for line in lines if line not in text) + text


def _literal(value: Any) -> str:
    """Return a value as jinja reads it: JSON, but for null and for what lies beyond 16 bits."""
    if isinstance(value, Mapping):
        items = ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items())
        return f"{{{items}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    if value is None:
        return "none"
    # JSON writes an emoji as two escapes, which jinja reads as two characters that can't be encoded.
    return json.dumps(value, ensure_ascii=all(ord(char) < 1 << 16 for char in str(value)))


def end_of_turn(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the special token that ends an answer, as the template writes it.

    Raises:
        TemplateError: no token of the vocabulary ends it, so the model couldn't learn to stop.
    """
    end = template.end_of_turn
    if end not in tokenizer.get_added_vocab() and end not in tokenizer.all_special_tokens:
        raise TemplateError(
            f"template {template.name}: an assistant turn ends in {end!r}, which is no special "
            f"token of this tokenizer; choose a template whose end-of-turn token it has"
        )
    return end


def _pad_token(tokenizer: PreTrainedTokenizerBase, end: str) -> str:
    vocabulary = tokenizer.get_vocab()
    for name in (*_PAD_NAMES, tokenizer.unk_token):
        if name and name in vocabulary and name != end:
            return str(name)
    raise CheckpointError(
        "the tokenizer has no pad token besides its end-of-turn token: add one to it before training"
    )


def eos_token_ids(
    configured: int | Sequence[int] | None, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return the tokens that end a turn, sorted: the tokenizer's, and `configured`, which is
    eos_token_id of generation_config.json.
    """
    return sorted(
        {int(token) for token in (*_listed(configured), *_listed(tokenizer.eos_token_id))}
    )


def sync_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy the tokenizer's eos and pad ids into config and generation_config.

    generation_config also has the other tokens that end a turn of its template, such as those after
    calls, and keeps its own.
    """
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    generation = model.generation_config
    ends = [tokenizer.eos_token_id, *turn_end_ids(tokenizer), *_listed(generation.eos_token_id)]
    generation.eos_token_id = list(dict.fromkeys(ends))
    generation.pad_token_id = tokenizer.pad_token_id


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end a turn of the tokenizer's template."""
    if not tokenizer.chat_template:
        return []
    template = load_template("tokenizer", tokenizer=tokenizer)
    ends = list(template.ends)
    if template.tool_use is not None:  # rows with tools may end otherwise
        with suppress(TemplateError):
            ends += template.for_tools([{"name": "any"}]).ends
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[end] for end in ends if end in vocabulary]


def _listed(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
