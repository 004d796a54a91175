"""From a raw row to a packed batch: the one path that every training stage uses."""

__all__ = [
    "config",
    "conversation",
    "faults",
    "policies",
    "prepare",
    "questions",
    "request",
    "seeds",
    "think_tags",
    "tool_calls",
    "verdicts",
    "workers",
]
