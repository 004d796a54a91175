"""Bounds the folder of prepared data: what was used longest ago goes when something new is kept."""

import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from dualign.errors import DataError

MOST_GB = 50.0
"""What the folder may hold, unless $DUALIGN_TOKENS_GB says otherwise."""
_LIMIT = "DUALIGN_TOKENS_GB"
logger = logging.getLogger(__name__)


def mark_used(entry: Path) -> None:
    """Remember that an entry was read now."""
    os.utime(entry)


def make_room(folder: Path, *, spare: Path) -> list[Path]:
    """Delete the entries of `folder` that were used longest ago until it is within its bound; returns
    them. `spare` stays, and so does what another process prepares or reads at the moment.
    """
    bound = _bound()
    entries = sorted(
        (one for one in folder.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime
    )
    sizes = {one: _size(one) for one in entries}
    total, gone = sum(sizes.values()), []
    for entry in entries:
        if total <= bound:
            break
        if entry != spare and _deleted(entry):
            total -= sizes[entry]
            gone.append(entry)
    if gone:
        logger.warning(
            "%s held more than %g GB of prepared data (%s): deleted %s (%.1f GB), used longest ago",
            folder,
            bound / 1e9,
            _LIMIT,
            ", ".join(one.name for one in gone),
            sum(sizes[one] for one in gone) / 1e9,
        )
    return gone


def _bound() -> float:
    given = os.environ.get(_LIMIT, "")
    try:
        found = float(given) if given else MOST_GB
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise DataError(f"{_LIMIT} is {given!r}: expected gigabytes, such as 50")
    return found * 1e9


def _deleted(entry: Path) -> bool:
    try:
        with FileLock(entry.with_suffix(".lock"), timeout=0):
            shutil.rmtree(entry)
    except Timeout:
        return False
    return True


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
