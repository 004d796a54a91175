"""Conversations -> the text that the model sees, and its supervised spans."""

__all__ = ["checks", "modes", "spans", "system_role", "template", "truncation"]
