"""The merge methods: a table of what each takes, and a file for each on blocks of arrays."""

__all__ = ["compat", "linear", "random", "table", "tensors"]
