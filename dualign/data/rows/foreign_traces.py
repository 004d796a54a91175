"""Traces in the tags of other families, at the head of an answer: `<thinking>`, `[THINK]`, ...

Read as text, such a block would be the answer of a no_think row.
"""

import re
from typing import NamedTuple

from dualign.data.think_tags import CLOSE, OPEN

_NAME = (
    r"(?:[a-z]+[:_-]|ant)?(?:begin_of_|start_of_|start_)?"
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|scratchpad|(?:inner|internal)_monologue|"
    r"chain_of_thought|cot)(?:_start|_begin)?"
)
_BRACKETS = (("<|", "|>"), ("<", ">"), ("[", "]"), ("◁", "▷"))
_HEAD = re.compile(
    r"\s*(?:"
    + "|".join(
        rf"{re.escape(left)}\s*(?P<name{number}>{_NAME})\s*{re.escape(right)}"
        for number, (left, right) in enumerate(_BRACKETS)
    )
    + r"|<\|channel\|>analysis<\|message\|>|<\|channel>thought|<unused94>thought|\[unused16\])",
    re.IGNORECASE,
)
_START = re.compile(r"(?:begin_of_|start_of_|start_)|(?:_start|_begin)$", re.IGNORECASE)
_SOLUTIONS = tuple(
    re.compile(rf"\s*{re.escape(start)}(.*){re.escape(stop)}\s*", re.DOTALL)
    for start, stop in (
        ("<|begin_of_solution|>", "<|end_of_solution|>"),
        ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    )
)


class ForeignTrace(NamedTuple):
    """A block at the head of an answer. `trace` is None if what closes it isn't there."""

    tag: str
    trace: str | None
    answer: str


def foreign_trace(content: str) -> ForeignTrace | None:
    """Return the block of another family that an answer begins with."""
    head = _HEAD.match(content)
    if head is None:
        return None
    tag, rest = head[0].strip(), content[head.end() :]
    if tag in (OPEN, "[think]", "[reasoning]"):  # the latter are words in brackets
        return None
    close = _closing(head).search(rest)
    if close is None:
        return ForeignTrace(tag, None, content)
    answer = rest[close.end() :]
    wrapped = next((match for form in _SOLUTIONS if (match := form.fullmatch(answer))), None)
    return ForeignTrace(tag, rest[: close.start()].strip(), wrapped[1] if wrapped else answer)


def with_think_block(content: str) -> str:
    """Return an answer with the block of another family between think tags."""
    block = foreign_trace(content)
    if block is None or block.trace is None:
        return content
    return f"{OPEN}\n{block.trace}\n{CLOSE}\n\n{block.answer.strip()}"


def _closing(head: re.Match[str]) -> re.Pattern[str]:
    """Return what closes a block: the name of its tag with a slash, or with end for start."""
    for number, (left, right) in enumerate(_BRACKETS):
        if name := head[f"name{number}"]:
            stem = re.escape(_START.sub("", name))
            return re.compile(
                rf"{re.escape(left)}\s*(?:/\s*|end_of_|end_)?{stem}(?:_end)?\s*{re.escape(right)}",
                re.IGNORECASE,
            )
    return re.compile(
        r"<\|end\|>\s*(?:<\|start\|>assistant)?(?:<\|channel\|>final<\|message\|>)?|<channel\|>|"
        r"<unused95>|\[unused17\]"
    )
