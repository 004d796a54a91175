"""What an earlier publication put beside the weights: whether it is of these weights, and stays."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dualign.errors import PublishError
from dualign.publish.hub.repository import RemoteFile, RemoteState, read_text
from dualign.publish.manifest import WEIGHTS
from dualign.rundir import RUN_JSON

_TEXTS = ("chat_template.jinja", "tokenizer.json")
"""Files that a copy holds too, in its own form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """Files in fewer bits beside weights. run.json keeps these fields."""

    folder: str
    """in the repository; "" is the top"""
    method: str
    files: tuple[str, ...]
    """their names in the repository"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierCopies:
    """Copies that the repository holds."""

    kept: tuple[Copy, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    """file of a kept copy -> its sha256"""
    outdated: tuple[str, ...] = ()
    """files that have to go"""
    why: str = ""
    faults: tuple[str, ...] = ()


def record_on_hub(repository: RemoteState | str) -> Mapping[str, Any]:
    """Return run.json of a repository that may hold copies; empty if it is none of ours.

    Raises:
        PublishError: the Hub doesn't give it.
    """
    if isinstance(repository, str) or RUN_JSON not in repository.files:
        return {}
    if not any(name.endswith((".gguf", "/export.json")) for name in repository.files):
        return {}
    try:
        record = json.loads(read_text(repository, RUN_JSON))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def earlier_copies(
    record: Mapping[str, Any],
    files: Mapping[str, RemoteFile],
    staged: Mapping[str, str],
    *,
    replaced: Collection[str],
    described: Collection[str],
) -> EarlierCopies:
    """Judge the copies that an earlier publication put into the repository.

    Args:
        record: run.json on the Hub.
        files: the repository's.
        staged: staged file, of copies too -> its sha256.
        replaced: folders of copies that go now.
        described: folders of copies that the card on the Hub tells of.

    Raises:
        PublishError: `record` names copies in a form that dualign doesn't write.
    """
    hashes: Mapping[str, str] = _mapping(record.get("files"))
    before, weights = (
        {name: sha for name, sha in of.items() if WEIGHTS.fullmatch(name)}
        for of in (hashes, staged)
    )
    other_texts = [name for name in _TEXTS if hashes.get(name) != staged.get(name)]
    kept: list[Copy] = []
    outdated: list[str] = []
    faults: list[str] = []
    for copy in _copies(record):
        present = [name for name in copy.files if name in files]
        if before != weights or copy.folder in replaced:
            outdated += [name for name in present if name not in staged]
        elif present:
            kept.append(copy)
            faults += [
                f"{name} isn't the one that {', '.join(present)} on the Hub were made with: export again and "
                "name the folder with --with, or delete them there"
                for name in other_texts
            ]
            faults += _faults(copy, files, hashes, described=copy.folder in described)
    return EarlierCopies(
        kept=tuple(kept),
        hashes={name: hashes[name] for copy in kept for name in copy.files if name in hashes},
        outdated=tuple(outdated),
        why="made from other weights" if before != weights else "--with puts others there",
        faults=tuple(faults),
    )


def _copies(record: Mapping[str, Any]) -> tuple[Copy, ...]:
    entries = _mapping(record.get("published")).get("copies") or ()
    try:
        return tuple(
            Copy(
                folder=str(entry["folder"]),
                method=str(entry["method"]),
                files=tuple(map(str, entry["files"])),
            )
            for entry in entries
        )
    except (KeyError, TypeError):
        raise PublishError(
            f"{RUN_JSON} on the Hub: published.copies isn't as `dualign publish` writes it; delete the "
            "copies there, and name their folders with --with"
        ) from None


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return an object of run.json; empty where another tool has something else under that key."""
    return value if isinstance(value, Mapping) else {}


def _faults(
    copy: Copy, files: Mapping[str, RemoteFile], hashes: Mapping[str, str], *, described: bool
) -> Iterator[str]:
    """Yield why the text on the Hub isn't true of a copy any more."""
    advice = "name the folder of its export with --with, or delete the rest of it there"
    for name in copy.files:
        sha = files[name].sha256 if name in files else None
        if name not in files:
            yield f"{name} is gone from the Hub, and the card would tell of it: {advice}"
        elif sha and sha != hashes.get(name):
            yield f"{name} on the Hub isn't what was published: {advice}"
    if not described:
        yield f"the card on the Hub doesn't tell of {', '.join(copy.files)} any more: {advice}"
