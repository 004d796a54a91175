"""Rows that are read, tokenized, shuffled and packed while training runs."""

__all__ = ["account", "opening", "reader", "stream"]
