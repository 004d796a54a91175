"""What runs left on the disk, and what of it may go."""

__all__ = ["cleaning", "runs", "show"]
