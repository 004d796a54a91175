"""Checkpoints for vLLM: weights in compressed-tensors' formats, compared in both modes."""

__all__ = ["export", "types"]
