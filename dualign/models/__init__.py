"""Model references resolved: tokenizers, loading for training and inference, logits."""

__all__ = [
    "data_request",
    "device",
    "head",
    "loading",
    "logits",
    "new_rows",
    "new_tokens",
    "origin",
    "pairs",
    "prompts",
    "source",
    "token_scores",
    "tokenizer",
]
