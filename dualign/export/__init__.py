"""GGUF files and a Modelfile for llama.cpp and Ollama, compared with the checkpoint."""

__all__ = ["export", "model_source", "show"]
