"""Losses of preference pairs, as pure functions of log-probabilities: a file for each family."""

__all__ = ["problems", "scores", "settings", "table"]
