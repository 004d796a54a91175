"""Attention in which the documents of a flat batch see themselves only."""

__all__ = ["function", "segments", "support"]
