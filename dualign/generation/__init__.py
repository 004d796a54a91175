"""Answers of models in one mode, split into thinking and answer, whoever gives them."""

__all__ = [
    "answers",
    "budgets",
    "chat",
    "config",
    "estimate",
    "generate",
    "likelihoods",
    "preflight",
    "responders",
    "samples",
    "sampling",
    "thinking",
    "vllm",
]
