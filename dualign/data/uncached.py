"""Run Dataset.map without the datasets result cache."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import uuid4

import datasets


def map_uncached(
    rows: datasets.Dataset, function: Callable[..., Any], **options: Any
) -> datasets.Dataset:
    """Return `rows.map(function, batched=True, **options)`, written to a temporary folder.

    `datasets` finds a cached result by the function's name, not by its code or by what it calls, so
    a new version of dualign would get the old one's tokens. The result gets a fingerprint of its
    own: making one of the function means pickling it, with the tokenizer and all.
    """
    name = uuid4().hex
    return rows.map(
        function,
        batched=True,
        new_fingerprint=name,
        load_from_cache_file=False,
        cache_file_name=f"{temporary_folder()}/{name}.arrow",
        **options,
    )


@cache
def temporary_folder() -> str:
    """Return a folder for this process's tables, deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="dualign-rows-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
