"""mergekit's YAML read as a merge."""

__all__ = ["load"]
