"""Raw rows of files or of the Hub -> conversations that are consistent."""

__all__ = [
    "cutting",
    "json_rows",
    "known_columns",
    "loading",
    "padding",
    "parser",
    "reading",
    "shape_check",
    "shapes",
    "source_files",
    "sources",
    "text_rules",
    "traces",
]
