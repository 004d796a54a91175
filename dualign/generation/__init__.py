"""Batched generation in one mode, and its split into thinking and answer."""

__all__ = ["chat", "generate", "sampling", "thinking", "vllm"]
