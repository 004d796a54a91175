"""Supervised fine-tuning on both modes, and traces for rows that have none."""

__all__ = ["config", "questions", "traces", "train"]
