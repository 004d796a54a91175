"""Losses of preference pairs, as pure functions of log-probabilities: a file for each family."""

__all__ = ["scores", "settings", "table"]
