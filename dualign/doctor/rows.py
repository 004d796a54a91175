"""Checks of a well-formed conversation: its text, its turns, its flags."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dualign.data.conversation import Conversation, Message
from dualign.data.think_tags import CLOSE, FLAG, FLAGS, OPEN, WHOLE_FLAG
from dualign.doctor.findings import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Turn markers of all formats: text that holds a foreign one was templated before.
_MARKERS = (
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>",
    "<|user|>", "<|assistant|>", "<|system|>", "[INST]", "[/INST]", "<<SYS>>",
    "### Instruction:", "### Response:",
)  # fmt: skip
_TRACE_LIKE = re.compile(
    r"<(thinking|antthinking|reasoning|thoughts?|scratchpad|analysis|reflection|inner_monologue)>"
    r".*?</\1>",
    re.IGNORECASE | re.DOTALL,
)
_LONG_ENOUGH = 20
"""A shorter answer that repeats its question may be a greeting (characters)."""


def foreign_markers(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Return a pattern of the turn markers that aren't this tokenizer's."""
    known_markers = {token.content for token in tokenizer.added_tokens_decoder.values()}
    foreign = [re.escape(marker) for marker in _MARKERS if marker not in known_markers]
    return re.compile("|".join(foreign) or r"(?!)")


def check_conversation(conversation: Conversation, foreign: re.Pattern[str]) -> Iterator[Finding]:
    """Check a conversation that could be parsed, whatever the template."""
    for turn, message in enumerate(conversation.messages):
        yield from _check_text(turn, message, foreign)
    yield from _check_flags(conversation)
    yield from _check_echo(conversation)
    last = conversation.messages[-1].role
    if last != "assistant":
        yield Finding("unanswered_turn", f"the row ends with a turn of the {last}")


def _check_text(turn: int, message: Message, foreign: re.Pattern[str]) -> Iterator[Finding]:
    text = f"{message.thinking}\n{message.content}" if message.thinking else message.content
    if "\ufffd" in text:
        yield Finding("broken_text", f"message {turn}: {_around(text, text.index(chr(0xFFFD)))}")
    if "<" not in text and "[" not in text and "#" not in text:
        return
    if marker := foreign.search(text):
        yield Finding(
            "foreign_marker",
            f"message {turn} ({message.role}) holds {marker[0]!r}: {_around(text, marker.start())}",
        )
    if message.role == "assistant" and (block := _TRACE_LIKE.search(message.content)):
        where = _around(message.content, block.start())
        yield Finding("trace_like_block", f"message {turn} holds <{block[1]}>: {where}")
    if message.role != "assistant" and (OPEN in text or CLOSE in text):
        yield Finding(
            "think_tag_in_prompt", f"message {turn} ({message.role}) mentions a think tag"
        )


def _check_flags(conversation: Conversation) -> Iterator[Finding]:
    """Find flags that no template reads as the switch: in words, and in user turns."""
    for turn, message in enumerate(conversation.messages):
        if "think" not in message.content:
            continue
        if message.role == "system":
            bare = WHOLE_FLAG.sub("", message.content)
            if flag := FLAG.search(bare):
                # If the template obeys it, the row was refused while parsing.
                where = f"message {turn}: {_around(bare, flag.start())}"
                yield Finding("flag_in_word", where, "warning")
        elif message.role == "user":
            flags = [FLAGS[flag] for flag in WHOLE_FLAG.findall(message.content)]
            if any(flag != conversation.mode for flag in flags):
                yield Finding(
                    "flag_in_user_turn",
                    f"message {turn} says /{flags[-1]} in a row whose mode is {conversation.mode}",
                )


def _check_echo(conversation: Conversation) -> Iterator[Finding]:
    question = ""
    for turn, message in enumerate(conversation.messages):
        answer = message.content.strip()
        if message.role == "user":
            question = answer
        elif message.role == "assistant" and answer == question and len(answer) >= _LONG_ENOUGH:
            yield Finding("answer_is_prompt", f"message {turn} repeats the question")


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - 20) : at + 40])
