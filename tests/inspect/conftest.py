"""Rows and a tokenizer, as the tests of data have them."""

from tests.data.conftest import datasets_cache, tokenizer, write_rows

__all__ = ["datasets_cache", "tokenizer", "write_rows"]
