"""Prepared rows shown to people, in the terminal and as a page."""

__all__ = ["html", "terminal"]
