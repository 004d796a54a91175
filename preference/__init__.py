"""Preference training (APO, DPO, SimPO and others), and pairs built from a checkpoint."""

__all__ = ["config", "pair_questions", "pairs", "pairs_config", "train"]
