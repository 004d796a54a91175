"""The command line: its commands import stages and rooms when they run."""

__all__ = ["main"]
