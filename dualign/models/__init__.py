"""Model references resolved: tokenizers, loading for training and inference, logits."""

__all__ = ["device", "loading", "logits", "prompts", "source", "tokenizer"]
