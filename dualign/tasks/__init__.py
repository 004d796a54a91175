"""What models are asked: tasks with their problems, from files and other sources, and who is right."""

__all__ = ["base", "files", "listed", "suites", "table"]
