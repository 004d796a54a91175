"""Checks on the user's own data, template and saved directory: training and serving agree."""

__all__ = ["doctor", "findings", "inputs", "show"]
