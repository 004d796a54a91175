"""What a model could do before, measured while it trains."""

__all__ = ["config", "estimate", "preflight", "watching"]
