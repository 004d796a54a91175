"""Conversations -> the text that the model sees, and its supervised spans."""

__all__ = [
    "checks",
    "installed",
    "modes",
    "spans",
    "system_role",
    "template",
    "template_texts",
    "trace_form",
    "truncation",
    "turn_shapes",
]
