"""What compares or scores answers where no verifier can say right or wrong: models that judge, reward models."""

__all__ = ["agreement", "base", "config", "preflight", "table"]
