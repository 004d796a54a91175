"""The text that stands for a mode: think tags in answers, flags in system messages and user turns."""

import re

from dualign.data.conversation import Mode

OPEN, CLOSE = "<think>", "</think>"
FLAGS: dict[str, Mode] = {"/think": "think", "/no_think": "no_think"}
FLAG = re.compile(r"/(?:no_)?think")
"""A flag anywhere, also as part of a word: docs/thinkers holds one."""
WHOLE_FLAG = re.compile(
    rf"(?<![!-~\u00c0-\u024f]){FLAG.pattern}(?=$|[\s,;!?)]|[.:](?!\w)|[^\x00-\u024f])"
)
"""A flag that is a word of its own: Chinese text may stand before and after it without a space."""
LEAKED_TAG = re.compile(rf"<\s*/?\s*{re.escape(OPEN.strip('<>'))}(?:ing)?\s*>", re.IGNORECASE)
"""A think tag as a model may misspell it: `< think >`, `</thinking>`."""
EMPTY_BLOCK = re.compile(rf"\s*{re.escape(OPEN)}\s*{re.escape(CLOSE)}")
"""A think block without a thought, as no_think turns begin with in some families."""
