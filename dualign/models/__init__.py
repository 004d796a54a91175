"""Model references resolved: tokenizers, loading for training and inference, logits."""

__all__ = ["loading", "logits", "source", "tokenizer"]
