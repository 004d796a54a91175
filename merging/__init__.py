"""Merges of checkpoints, tensor by tensor, with their inputs and output checked."""

__all__ = [
    "config",
    "diff",
    "estimate",
    "merge",
    "output",
    "preflight",
    "verify",
]
