"""Shorten rows in ways that a model may learn from: whole turns from the front, or a trace up to a
budget.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from dualign.data.conversation import Conversation, Message

TokenEnds = Callable[[str], list[int]]
"""The character at which each token of a text ends."""


def without_first_turns(conversation: Conversation) -> Conversation | None:
    """Return the conversation without its first user turn and what answers it; system messages
    stay. None if nothing supervised would be left.
    """
    users = [turn for turn, message in enumerate(conversation.messages) if message.role == "user"]
    if len(users) < 2:
        return None
    head = [message for message in conversation.messages[: users[0]] if message.role == "system"]
    rest = conversation.messages[users[1] :]
    if not any(message.role == "assistant" and message.train for message in rest):
        return None
    return replace(conversation, messages=(*head, *rest))


def within_budget(conversation: Conversation, budget: int, token_ends: TokenEnds) -> Conversation:
    """Return the conversation with the traces of supervised turns cut after `budget` tokens or a
    little less: after a word, so that what closes the trace is a token of its own.
    """
    messages = tuple(_cut(message, budget, token_ends) for message in conversation.messages)
    if messages == conversation.messages:
        return conversation
    repairs = (*conversation.repairs, "thinking_budget")
    return replace(conversation, messages=messages, repairs=repairs)


def _cut(message: Message, budget: int, token_ends: TokenEnds) -> Message:
    if message.role != "assistant" or not message.train or not message.thinking:
        return message
    ends = token_ends(message.thinking)
    if len(ends) <= budget:
        return message
    whole = message.thinking[: ends[budget - 1] + 1]
    words = [match.end() for match in re.finditer(r"\w(?=\s)", whole)]
    stop = words[-1] if words else ends[budget - 1]
    return replace(message, thinking=message.thinking[:stop], cut=True)
