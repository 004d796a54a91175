"""Bound the folder of prepared data: new entries push out those used longest ago."""

import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from dualign.errors import DataError

_DEFAULT_GB = 50.0
_LIMIT = "DUALIGN_TOKENS_GB"
logger = logging.getLogger(__name__)


def mark_used(entry: Path) -> None:
    """Set the time of an entry's last use to now."""
    os.utime(entry)


def make_room(folder: Path, *, spare: Path) -> list[Path]:
    """Delete the entries of `folder` used longest ago until it is within its bound, and return
    them.

    `spare` stays, and so do entries that another process prepares or reads at the moment.
    """
    bound = _bound()
    entries = sorted(
        (entry for entry in folder.iterdir() if entry.is_dir()),
        key=lambda entry: entry.stat().st_mtime,
    )
    sizes = {entry: _size(entry) for entry in entries}
    total, deleted = sum(sizes.values()), []
    for entry in entries:
        if total <= bound:
            break
        if entry != spare and _delete(entry):
            total -= sizes[entry]
            deleted.append(entry)
    if deleted:
        logger.warning(
            "%s held more than %g GB of prepared data (%s): deleted %s (%.1f GB), used longest ago",
            folder,
            bound / 1e9,
            _LIMIT,
            ", ".join(entry.name for entry in deleted),
            sum(sizes[entry] for entry in deleted) / 1e9,
        )
    return deleted


def _bound() -> float:
    text = os.environ.get(_LIMIT, "")
    try:
        gigabytes = float(text) if text else _DEFAULT_GB
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise DataError(f"{_LIMIT} is {text!r}: expected gigabytes, such as 50")
    return gigabytes * 1e9


def _delete(entry: Path) -> bool:
    """Delete an entry; False if another process holds its lock."""
    try:
        with FileLock(entry.with_suffix(".lock"), timeout=0):
            shutil.rmtree(entry)
    except Timeout:
        return False
    return True


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
