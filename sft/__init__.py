"""Supervised fine-tuning on both modes."""

__all__ = ["config", "train"]
