"""Results that stay adapters: combined, compressed, extracted, folded."""

__all__ = ["extract", "fold", "lowrank", "output", "soup"]
