"""The functions that the rows of checklist.py name."""

__all__ = ["load_test"]
