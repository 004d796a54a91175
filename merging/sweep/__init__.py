"""Searches for the merge that scores best."""

__all__ = ["config", "estimate", "sweep"]
