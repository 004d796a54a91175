"""`datasets` without its cache of results."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import datasets


def map_afresh(
    rows: datasets.Dataset, made: Callable[..., Any], **options: Any
) -> datasets.Dataset:
    """`rows.map(made, batched=True, **options)` into a temporary folder, never from the cache.

    `datasets` recognises a cached result by the function's name, not by its code or by what it
    calls, so a new version of dualign would get the old one's tokens. The result gets a fingerprint of
    its own, because making one of the function means pickling it, with the tokenizer and all.
    """
    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        return rows.map(made, batched=True, new_fingerprint=uuid4().hex, **options)
    finally:
        if enabled:
            datasets.enable_caching()
