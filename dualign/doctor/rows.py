"""What can be wrong with a conversation that is well formed: its words, its turns, its tools."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dualign.data.conversation import Conversation, Message
from dualign.data.modes import CLOSE, FLAG, FLAGS, OPEN, WHOLE_FLAG
from dualign.doctor.findings import Fault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The turns of other formats: text that was templated before it came here.
_FORMATS = (
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>",
    "<|user|>", "<|assistant|>", "<|system|>", "[INST]", "[/INST]", "<<SYS>>",
    "### Instruction:", "### Response:",
)  # fmt: skip
_LONG_ENOUGH = 20
"""Characters from which an answer that repeats its question isn't a greeting."""


def foreign_markers(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """The turns of formats that aren't this tokenizer's."""
    own = {one.content for one in tokenizer.added_tokens_decoder.values()}
    foreign = [re.escape(one) for one in _FORMATS if one not in own]
    return re.compile("|".join(foreign) or r"(?!)")


def conversation_faults(conversation: Conversation, foreign: re.Pattern[str]) -> Iterator[Fault]:
    """What a conversation that is well formed may still hold, whatever the template."""
    for turn, message in enumerate(conversation.messages):
        yield from _word_faults(turn, message, foreign)
    yield from _flag_faults(conversation)
    yield from _echo_faults(conversation)
    last = conversation.messages[-1].role
    if last != "assistant":
        yield Fault("unanswered_turn", f"the row ends with a turn of the {last}")


def _word_faults(turn: int, message: Message, foreign: re.Pattern[str]) -> Iterator[Fault]:
    text = f"{message.thinking}\n{message.content}" if message.thinking else message.content
    if "\ufffd" in text:
        yield Fault("broken_text", f"message {turn}: {_around(text, text.index(chr(0xFFFD)))}")
    if "<" not in text and "[" not in text and "#" not in text:
        return
    if found := foreign.search(text):
        yield Fault(
            "foreign_marker",
            f"message {turn} ({message.role}) holds {found[0]!r}: {_around(text, found.start())}",
        )
    if message.role != "assistant" and (OPEN in text or CLOSE in text):
        yield Fault("think_tag_in_prompt", f"message {turn} ({message.role}) mentions a think tag")


def _flag_faults(conversation: Conversation) -> Iterator[Fault]:
    """Flags that no template reads as the switch: parts of words, and those of users."""
    for turn, message in enumerate(conversation.messages):
        if "think" not in message.content:
            continue
        if message.role == "system":
            bare = WHOLE_FLAG.sub("", message.content)
            if found := FLAG.search(bare):
                # Where the template obeys it, the row was refused before it came here.
                said = f"message {turn}: {_around(bare, found.start())}"
                yield Fault("flag_in_word", said, "warning")
        elif message.role == "user":
            flags = [FLAGS[flag] for flag in WHOLE_FLAG.findall(message.content)]
            if any(flag != conversation.mode for flag in flags):
                yield Fault(
                    "flag_in_user_turn",
                    f"message {turn} says /{flags[-1]} in a row whose mode is {conversation.mode}",
                )


def _echo_faults(conversation: Conversation) -> Iterator[Fault]:
    asked = ""
    for turn, message in enumerate(conversation.messages):
        answer = message.content.strip()
        if message.role == "user":
            asked = answer
        elif message.role == "assistant" and answer == asked and len(answer) >= _LONG_ENOUGH:
            yield Fault("answer_is_prompt", f"message {turn} repeats the question")


def tool_name(tool: Mapping[str, Any]) -> str:
    """The function's name in a schema or a call."""
    inner = tool.get("function")
    named = inner if isinstance(inner, Mapping) else tool
    return str(named.get("name", ""))


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - 20) : at + 40])
