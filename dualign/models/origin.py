"""What a model is, for rows that it writes: its name, and what tells its weights from others."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dualign.hashing import sha256
from dualign.model_ref import ModelRef
from dualign.models.source import resolve_model
from dualign.rundir import read_run


def model_origin(reference: str) -> dict[str, str]:
    """Return the model's name, and its commit on the hub, the fingerprint of its run, or a hash of its
    files; a folder's path stays here.

    The hash is over the names and sha256 of all files, those of an adapter's base included.
    """
    source = resolve_model(reference)
    folder = Path(source.folder)
    if not folder.is_dir():
        return {"model": source.folder, "revision": _commit(source.folder, source.revision)}
    name = reference if ModelRef.parse(reference).kind == "embedded" else folder.name
    fingerprint = read_run(folder).get("fingerprint")
    if fingerprint:
        return {"model": name, "fingerprint": str(fingerprint)}
    digest = hashlib.sha256()
    for place in dict.fromkeys((folder, Path(source.base))):
        files = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else ()
        for file in files:
            digest.update(f"{file.name} {sha256(file)}\n".encode())
    return {"model": name, "sha256": digest.hexdigest()}


def _commit(name: str, revision: str | None) -> str:
    """Return the commit that was loaded, from the hub's cache; the branch or tag if it isn't there."""
    file = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else revision or "main"
