"""What checks answers: a file for each kind, and the table of kinds that task files name."""

__all__ = ["base", "call_trees", "table", "written_calls"]
