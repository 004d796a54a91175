"""Vocabularies of a merge: read, mapped to one, and models seen through it."""

__all__ = ["chat_template", "mapping", "remapped", "token_id_fields", "vocabulary"]
