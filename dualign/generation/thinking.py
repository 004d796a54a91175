"""Split a generation into thinking and answer, and check its form.

A think prompt may end in an open block (the tag is prefilled), or leave it to the model to open
one. Both are handled. Example, prompt ending in `<think>\\n`: `2+2=4\\n</think>\\n\\nFour` ->
thinking `2+2=4`, answer `Four`, closed.
"""

import re
from dataclasses import dataclass

from dualign.data.conversation import Mode
from dualign.data.think_tags import CLOSE, EMPTY_BLOCK, LEAKED_TAG, OPEN

_BLOCK = re.compile(rf"{re.escape(OPEN)}(.*?)(?:{re.escape(CLOSE)}|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Parts and form of a generation.

    closed, empty and cut_in_think are about think mode; they are False in no_think.
    closed: the output starts with the think block (or continues a prefilled one), and the block
    ends.
    empty: no block, or a block of white space.
    cut_in_think: the token limit was reached inside the block.
    leaked: a think tag is out of place. In no_think mode that is any tag, except for one empty
    block at the head of an answer whose prompt has no block (some families mark "not thinking"
    like this). In think mode it is any tag outside the block at the head. Reasoning without tags
    can't be told from an answer and isn't counted; it shows in the answer's length.
    """

    thinking: str | None
    """text of the think blocks, trimmed; None if there is no block"""
    answer: str
    """text for the user, trimmed; empty if a think block never ended"""
    closed: bool
    leaked: bool
    empty: bool
    cut_in_think: bool


def prompt_opens_block(prompt: str) -> bool:
    """Return whether the prompt ends inside a think block, so that thinking starts at once."""
    return prompt.rstrip().endswith(OPEN)


def _prompt_has_block(prompt: str) -> bool:
    """Return whether the prompt ends with a closed think block, as no_think prompts do."""
    return prompt.rstrip().endswith(CLOSE)


def split(prompt: str, generated: str, *, mode: Mode, finished: bool) -> Reply:
    """Split `generated`, the continuation of `prompt`.

    Args:
        finished: the model ended its turn; False when the token limit cut it.
    """
    if mode == "no_think":
        return _split_no_think(prompt, generated)
    text = generated.lstrip()
    opened = prompt_opens_block(prompt)
    leaked = False
    if text.startswith(OPEN):
        # After a prefilled tag this is a second one.
        leaked, opened, text = opened, True, text[len(OPEN) :]
    if not opened:
        return _without_block(text)
    thinking, close, rest = text.partition(CLOSE)
    leaked = (
        leaked or LEAKED_TAG.search(thinking) is not None or LEAKED_TAG.search(rest) is not None
    )
    thinking = LEAKED_TAG.sub("", thinking).strip()
    return Reply(
        thinking=thinking,
        answer=_visible(rest),
        closed=bool(close),
        leaked=leaked,
        empty=not thinking,
        cut_in_think=not close and not finished,
    )


def _without_block(text: str) -> Reply:
    """Parse think-mode output that doesn't start with a block; a later block is a leak."""
    before, close, after = text.partition(CLOSE)
    stray = bool(close) and OPEN not in before  # the end of a block that was never opened
    thinking = before.strip() if stray else _in_blocks(text)
    return Reply(
        thinking=thinking,
        answer=_visible(after if stray else text),
        closed=False,
        leaked=LEAKED_TAG.search(text) is not None,
        empty=not thinking,
        cut_in_think=False,
    )


def _split_no_think(prompt: str, generated: str) -> Reply:
    text = generated if _prompt_has_block(prompt) else EMPTY_BLOCK.sub("", generated, count=1)
    before, close, after = text.partition(CLOSE)
    stray = bool(close) and OPEN not in before
    return Reply(
        thinking=before.strip() if stray else _in_blocks(text),
        answer=_visible(after if stray else text),
        closed=False,
        leaked=LEAKED_TAG.search(text) is not None,
        empty=False,
        cut_in_think=False,
    )


def _in_blocks(text: str) -> str | None:
    blocks = [block.strip() for block in _BLOCK.findall(text)]
    return "\n\n".join(blocks) if blocks else None


def _visible(text: str) -> str:
    """Remove think blocks, closed or not, and stray tags."""
    return LEAKED_TAG.sub("", _BLOCK.sub("", text)).strip()
