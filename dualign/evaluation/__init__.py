"""Tasks put to models in both modes, and their metrics."""

__all__ = [
    "config",
    "evaluate",
    "language_table",
    "metrics",
    "preflight",
    "requests",
    "sampled",
    "scores",
    "significance",
    "table",
]
