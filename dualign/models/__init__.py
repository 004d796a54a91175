"""Model references resolved: tokenizers, loading for training and inference, logits."""

__all__ = [
    "data_request",
    "device",
    "head",
    "loading",
    "logits",
    "origin",
    "pairs",
    "prompts",
    "source",
    "token_scores",
    "tokenizer",
]
