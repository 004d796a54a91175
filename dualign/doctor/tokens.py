"""Checks of a tokenizer against its template, and of saved tokenizers against trained rows."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from dualign.data.conversation import Conversation, Message
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.tokens.encoding import EncodedRow
from dualign.data.tokens.labels import Example
from dualign.doctor.findings import Finding
from dualign.errors import TemplateError
from dualign.models.prompts import arguments, switch_of
from dualign.models.tokenizer import end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSample:
    """A conversation and its tokens in training."""

    conversation: Conversation
    input_ids: list[int]


def check_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate
) -> Iterator[Finding]:
    """Check end of turn, padding and the bos token."""
    try:
        end = end_of_turn(template, tokenizer)
    except TemplateError as error:
        yield Finding("no_end_of_turn", str(error))
        return
    if tokenizer.eos_token != end:
        yield Finding(
            "eos_not_end_of_turn", f"eos is {tokenizer.eos_token!r}, a turn ends in {end!r}"
        )
    if tokenizer.pad_token is None:
        yield Finding("no_pad", "pad_token isn't set")
    elif tokenizer.pad_token == end:
        yield Finding("pad_is_end_of_turn", f"pad and end-of-turn are both {end!r}")
    yield from _check_bos(tokenizer, template)


def check_example(example: Example, unknown: int | None) -> Iterator[Finding]:
    """Find tokens of unknown text; `unknown` is the id of the unknown token."""
    if unknown is not None and unknown in example.input_ids:
        count = example.input_ids.count(unknown)
        yield Finding("unknown_tokens", f"{count} tokens aren't in the vocabulary")


def prompt_sample(row: EncodedRow) -> PromptSample | None:
    """Return the row as a sample; None if its tokens don't begin with its first prompt."""
    conversation, example = row.conversations[0], row.examples[0][0]
    if example.cut or all(message.role != "assistant" for message in conversation.messages):
        return None
    return PromptSample(conversation=conversation, input_ids=example.input_ids)


def check_served_prompts(
    samples: Sequence[PromptSample], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[PromptSample, Finding]]:
    """Save and reload the tokenizer; yield samples whose prompts it renders otherwise."""
    if not samples:
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        reloaded = AutoTokenizer.from_pretrained(folder)
    for sample in samples:
        served = _served(sample.conversation, reloaded)
        trained = sample.input_ids[: len(served)]
        if served != trained:
            message = (
                f"served: {reloaded.decode(served)[-80:]!r}, "
                f"trained: {reloaded.decode(trained)[-80:]!r}"
            )
            yield sample, Finding("served_prompt_differs", message)


def unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id of the unknown token; None if it is also eos, pad or bos."""
    others = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in others else unknown


def _check_bos(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> Iterator[Finding]:
    plain, bare = _ids("Hi", tokenizer, special=True), _ids("Hi", tokenizer, special=False)
    head = plain[: len(plain) - len(bare)]
    if not head or plain[len(head) :] != bare:
        return
    try:
        prompt = template.prompt((Message(role="user", content="Hi"),), mode="no_think")
    except TemplateError:  # one that needs tools, for example
        return
    name = tokenizer.decode(head)
    if _ids(prompt, tokenizer, special=False)[: len(head)] == head:
        yield Finding("bos_doubled", f"both the template and the tokenizer put {name!r} first")
    else:
        yield Finding("bos_missing", f"the tokenizer puts {name!r} first, the template doesn't")


def _ids(text: str, tokenizer: "PreTrainedTokenizerBase", *, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def _served(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids of the first prompt as transformers renders it.

    transformers has no fixed date, so a template with a clock is rendered as in training.
    """
    kwargs = dict(conversation.template_kwargs)
    roles = [message.role for message in conversation.messages]
    prompt, mode = conversation.messages[: roles.index("assistant")], conversation.mode
    if "strftime_now" in str(tokenizer.chat_template):
        template = load_template("tokenizer", tokenizer=tokenizer)
        text = template.prompt(prompt, mode=mode, tools=conversation.tools, template_kwargs=kwargs)
        return _ids(text, tokenizer, special=False)
    turns = [{"role": message.role, "content": message.content} for message in prompt]
    messages, variables = arguments(turns, mode, switch_of(tokenizer), kwargs)
    rendered = tokenizer.apply_chat_template(
        messages,
        tools=[dict(tool) for tool in conversation.tools] or None,
        add_generation_prompt=True,
        tokenize=False,
        **variables,
    )
    return _ids(str(rendered), tokenizer, special=False)
