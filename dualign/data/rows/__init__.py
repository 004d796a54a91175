"""Raw rows of files or of the Hub -> conversations that are consistent."""

__all__ = [
    "loading",
    "padding",
    "parser",
    "shape_check",
    "shapes",
    "source_files",
    "sources",
    "text_rules",
]
