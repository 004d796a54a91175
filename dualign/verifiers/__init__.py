"""What checks answers: a file for each kind, and the table of kinds that task files name."""

__all__ = ["base", "call_trees", "fences", "table", "unit_tests", "written_calls"]
