"""What can be wrong between a template and a tokenizer, and between a saved tokenizer and its rows."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from dualign.data.conversation import Conversation, Message
from dualign.data.text.template import ChatTemplate, load_template
from dualign.data.tokens.encoding import EncodedRow
from dualign.data.tokens.labels import Example
from dualign.doctor.findings import Fault
from dualign.errors import TemplateError
from dualign.models.tokenizer import end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A row, and its tokens."""

    conversation: Conversation
    input_ids: list[int]


def tokenizer_faults(
    tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate
) -> Iterator[Fault]:
    """Ends, padding and the first token."""
    try:
        end = end_of_turn(template, tokenizer)
    except TemplateError as error:
        yield Fault("no_end_of_turn", str(error))
        return
    if tokenizer.eos_token != end:
        yield Fault(
            "eos_not_end_of_turn", f"eos is {tokenizer.eos_token!r}, a turn ends in {end!r}"
        )
    if tokenizer.pad_token is None:
        yield Fault("no_pad", "pad_token isn't set")
    elif tokenizer.pad_token == end:
        yield Fault("pad_is_end_of_turn", f"pad and end-of-turn are both {end!r}")
    yield from _first_token_faults(tokenizer, template)


def example_faults(example: Example, unknown: int | None) -> Iterator[Fault]:
    """What shows in the tokens only."""
    if unknown is not None and unknown in example.input_ids:
        count = example.input_ids.count(unknown)
        yield Fault("unknown_tokens", f"{count} tokens aren't in the vocabulary")


def sample_of(row: EncodedRow) -> Sample | None:
    """The row as a sample, if its first assistant turn is asked for as it stands in the tokens."""
    conversation, example = row.conversations[0], row.examples[0][0]
    if example.cut or all(message.role != "assistant" for message in conversation.messages):
        return None
    return Sample(conversation=conversation, input_ids=example.input_ids)


def served_faults(
    samples: Sequence[Sample], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[Sample, Fault]]:
    """The samples whose prompt comes out otherwise from the tokenizer, saved and loaded again."""
    if not samples:
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        reloaded = AutoTokenizer.from_pretrained(folder)
    for sample in samples:
        served = _served(sample.conversation, reloaded)
        trained = sample.input_ids[: len(served)]
        if served != trained:
            found = (
                f"served: {reloaded.decode(served)[-80:]!r}, "
                f"trained: {reloaded.decode(trained)[-80:]!r}"
            )
            yield sample, Fault("served_prompt_differs", found)


def unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of the unknown token, unless it is printed by templates or ends texts."""
    known = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    found: int | None = tokenizer.unk_token_id
    return None if found in known else found


def _first_token_faults(
    tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate
) -> Iterator[Fault]:
    plain, bare = _ids("Hi", tokenizer, special=True), _ids("Hi", tokenizer, special=False)
    head = plain[: len(plain) - len(bare)]
    if not head or plain[len(head) :] != bare:
        return
    prompt = template.prompt((Message(role="user", content="Hi"),), mode="no_think")
    name = tokenizer.decode(head)
    if _ids(prompt, tokenizer, special=False)[: len(head)] == head:
        yield Fault("bos_doubled", f"both the template and the tokenizer put {name!r} first")
    else:
        yield Fault("bos_missing", f"the tokenizer puts {name!r} first, the template doesn't")


def _ids(text: str, tokenizer: "PreTrainedTokenizerBase", *, special: bool) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return found


def _served(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """As transformers renders it. It can't be told the day, so a template with a clock is rendered as
    training does.
    """
    given = dict(conversation.template_kwargs)
    turn = next(i for i, one in enumerate(conversation.messages) if one.role == "assistant")
    asked, mode = conversation.messages[:turn], conversation.mode
    if "strftime_now" in str(tokenizer.chat_template):
        template = load_template("tokenizer", tokenizer=tokenizer)
        text = template.prompt(asked, mode=mode, tools=conversation.tools, template_kwargs=given)
        return _ids(text, tokenizer, special=False)
    rendered = tokenizer.apply_chat_template(
        [{"role": one.role, "content": one.content} for one in asked],
        tools=[dict(tool) for tool in conversation.tools] or None,
        add_generation_prompt=True,
        enable_thinking=mode == "think",
        tokenize=False,
        **given,
    )
    return _ids(str(rendered), tokenizer, special=False)
