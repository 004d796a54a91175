"""Tasks put to models in both modes, and their metrics."""

__all__ = [
    "budget_table",
    "config",
    "divergence",
    "evaluate",
    "language_table",
    "lengths",
    "metrics",
    "preflight",
    "requests",
    "sampled",
    "scores",
    "significance",
    "suite_table",
    "table",
]
