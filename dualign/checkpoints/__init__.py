"""Weights on disk: read tensor by tensor, adapters folded in or added up, written in shards."""

__all__ = [
    "adapters",
    "checkpoint",
    "context",
    "dtypes",
    "embedded",
    "finite",
    "header",
    "lora",
    "meta_model",
    "patterns",
    "shards",
    "token_rows",
    "weights",
]
