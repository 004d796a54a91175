"""Model references resolved: tokenizers, loading for training and inference, logits."""

__all__ = ["data_request", "device", "loading", "logits", "prompts", "source", "tokenizer"]
