"""GGUF files, a Modelfile, and checkpoints for vLLM, compared with the model that they are of."""

__all__ = ["comparison", "export", "imatrix", "model_source", "show", "show_modes", "writer"]
