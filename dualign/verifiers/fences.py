"""Code fences of an answer."""

import re

# Up to three spaces before it, as in CommonMark; the closing fence is at least as long.
_FENCE = re.compile(
    r"^ {0,3}(?P<mark>`{3,}|~{3,})[^\n`]*\n(?P<text>.*?)(?:^ {0,3}(?P=mark)[`~]*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)


def last_block(answer: str) -> str | None:
    """Return the text of the last code fence; one that never closes ends with the answer."""
    blocks = [match["text"] for match in _FENCE.finditer(answer)]
    return blocks[-1] if blocks else None
