"""`datasets` without its cache of results."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def no_cache() -> Iterator[None]:
    """`datasets` recognises a cached result by the function's name, not by its code or by what it
    calls, so a new version of dualign would get the old one's tokens. Without caching, tables go to
    a temporary folder.
    """
    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_caching()
