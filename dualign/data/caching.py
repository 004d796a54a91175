"""`datasets` without its cache of results."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import uuid4

import datasets


def map_afresh(
    rows: datasets.Dataset, made: Callable[..., Any], **options: Any
) -> datasets.Dataset:
    """`rows.map(made, batched=True, **options)` into a temporary folder, never from the cache.

    `datasets` recognises a cached result by the function's name, not by its code or by what it
    calls, so a new version of dualign would get the old one's tokens. The result gets a fingerprint of
    its own, because making one of the function means pickling it, with the tokenizer and all. Of rows that are
    in memory it would keep the result in memory too.
    """
    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        name = uuid4().hex
        place = None if rows.cache_files else f"{temporary_folder()}/{name}.arrow"
        return rows.map(made, batched=True, new_fingerprint=name, cache_file_name=place, **options)
    finally:
        if enabled:
            datasets.enable_caching()


@cache
def temporary_folder() -> str:
    """A folder for this process's tables, gone when it ends."""
    folder = tempfile.mkdtemp(prefix="dualign-rows-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
