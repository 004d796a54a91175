"""Preference training (APO, DPO, IPO), and pairs built from a checkpoint."""

__all__ = ["config", "pairs", "train"]
