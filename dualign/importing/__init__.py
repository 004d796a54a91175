"""Recipes of axolotl, LLaMA-Factory and TRL, brought over with three lists of what that changes."""

__all__ = ["importing", "show", "tools", "writer"]
