"""What a recipe costs before it runs: memory, operations, time; `dualign plan` shows it."""

__all__ = ["plan", "show"]
