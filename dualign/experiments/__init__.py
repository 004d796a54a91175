"""Many runs of one recipe that differ in some keys, compared side by side."""

__all__ = ["start"]
