"""How freed memory is kept, where the C library lets us say."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 64 << 20
_LARGEST_KEPT = 32 << 20


def keep_freed_blocks() -> None:
    """Let the process use freed blocks again, up to 64 MB, instead of giving each to the kernel.

    Tensors are made in blocks of some hundred kilobytes. By default glibc returns every one and
    asks for it again, and the kernel clears it each time: that took half of a merge's time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
