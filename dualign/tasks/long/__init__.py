"""Problems of a chosen length in tokens, made from a seed, in the forms of RULER (arXiv 2404.06654)."""

__all__ = ["source"]
