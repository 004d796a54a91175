"""From a checkpoint to the files that llama.cpp and Ollama run: GGUF, a Modelfile, and the proof that they answer alike."""
