"""The local files behind a source and their fingerprints. Light on purpose: a finished stage is
skipped by it.
"""

import hashlib
from collections import Counter
from pathlib import Path

from dualign.errors import DataError
from dualign.hashing import sha256
from dualign.model_ref import HubRef

_TEXT = "text"
_FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": _TEXT,
    ".md": _TEXT,
    ".pdf": _TEXT,
    ".docx": _TEXT,
}
_DOCUMENTS = (
    *(".pdf", ".docx", ".doc", ".odt", ".rtf"),
    *(".epub", ".pptx", ".html", ".htm"),
)
"""What somebody may take for read: text and Markdown beside rows are seldom more than a license."""
_README = "readme.md"
_GLOB = frozenset("*?[")


def local_files(path: str, base: Path | None = None) -> list[Path]:
    """Return the data files that `path` names, sorted; empty when it is a hub id.

    A relative path starts at `base` (default: the current folder). What looks like a file but isn't
    there is an error, so that a mistyped file name is never looked up on the hub.
    """
    place = (base or Path()) / Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        return _files_in(place)
    if _GLOB & set(path):
        return _files_matching(path, place)
    if not may_be_hub_id(path):
        raise DataError(
            f"source {path!r}: no such file or folder (looked at {place.absolute()}). "
            "Give an existing file, folder or glob, or a hub id such as owner/name."
        )
    return []


def unread_documents(path: str, files: list[Path], base: Path | None = None) -> str:
    """Return how many documents of a folder aren't among its `files`, by ending; "" if none."""
    folder = (base or Path()) / Path(path).expanduser()
    inside = set(folder.rglob("*")) - set(files) if folder.is_dir() else set()
    endings = Counter(file.suffix.lower() for file in inside if not file.name.startswith("."))
    return ", ".join(f"{endings[ending]:,} {ending}" for ending in _DOCUMENTS if endings[ending])


def fingerprint_files(path: str, base: Path | None = None) -> list[tuple[str, str]]:
    """Return (file, sha256 of its bytes) for each local file of a source; empty for a hub id."""
    return [(str(file), sha256(file)) for file in local_files(path, base)]


def combined_sha256(fingerprints: list[tuple[str, str]]) -> str:
    """Return one sha256 for a source: that of its only file, or one over all of them in order."""
    if len(fingerprints) == 1:
        return fingerprints[0][1]
    return hashlib.sha256("\n".join(digest for _, digest in fingerprints).encode()).hexdigest()


def data_format(file: Path) -> str:
    """Return the reader of a file, by its extension without that of a compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".xz", ".zst"):
        suffixes.pop()
    if not suffixes or suffixes[-1] not in _FORMATS:
        raise DataError(
            f"{file}: can't tell how to read it. Expected one of {', '.join(_FORMATS)}, "
            "also compressed (.gz, .bz2, .xz, .zst)."
        )
    return _FORMATS[suffixes[-1]]


def is_saved_dataset(folder: Path) -> bool:
    """Return whether the folder was written by `Dataset.save_to_disk`."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _files_in(folder: Path) -> list[Path]:
    if is_saved_dataset(folder):
        return sorted(folder.glob("*.arrow"))
    files = sorted(file for file in folder.rglob("*") if file.is_file() and _is_data(file))
    # A readme beside the rows is no document of its own, and neither is one beside other kinds of text.
    files = [file for file in files if data_format(file) != _TEXT] or files
    others = [file for file in files if file.name.lower() != _README]
    if others and not any(file.suffix.lower() == ".md" for file in others):
        files = others
    if not files:
        raise DataError(
            f"source {str(folder)!r}: the folder holds no data file. Expected {', '.join(_FORMATS)}."
        )
    return files


def _files_matching(path: str, pattern: Path) -> list[Path]:
    fixed = next(i for i, part in enumerate(pattern.parts) if _GLOB & set(part))
    root, rest = Path(*pattern.parts[:fixed]), Path(*pattern.parts[fixed:])
    files = sorted(file for file in root.glob(str(rest)) if file.is_file())
    if not files:
        raise DataError(f"source {path!r}: the glob matches no file (looked at {pattern}).")
    return files


def _is_data(file: Path) -> bool:
    if file.name.startswith((".", "_")):
        return False
    try:
        data_format(file)
    except DataError:
        return False
    return True


def may_be_hub_id(path: str) -> bool:
    """Tell a dataset's hub id from a path that doesn't exist: it doesn't end like a data file."""
    named_like_file = any(suffix.lower() in _FORMATS for suffix in Path(path).suffixes)
    return HubRef.parse(path) is not None and not named_like_file
