"""The staged folder: links to the files that go, and settings without this machine's paths."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from dualign.checkpoints.adapters import fold
from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.weights import from_hub
from dualign.errors import PublishError
from dualign.publish.base import Base
from dualign.publish.manifest import SETTINGS
from dualign.publish.redaction import redact_adapter_config, redact_settings
from dualign.publish.release import Release
from dualign.rundir import write_json


@contextmanager
def staging_folder(run_dir: Path) -> Iterator[Path]:
    """A temporary folder on the run directory's disk, so that gigabytes are linked, not copied."""
    try:
        folder = Path(mkdtemp(prefix=".publish-", dir=run_dir.resolve().parent))
    except OSError:  # the disk is read-only
        folder = Path(mkdtemp(prefix="dualign-publish-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stage_files(release: Release, folder: Path) -> None:
    """Put the checkpoint's files into `folder`.

    Raises:
        PublishError: a file can't be copied.
    """
    manifest, base, adapter = release.manifest, release.adapter_base, release.lineage.adapter_folder
    if manifest.fold and base and adapter:
        _fold(base, adapter, folder)
    for name, file in manifest.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # folding has put the base's there
        if file.name == "adapter_config.json":
            id, revision = (base.id, base.revision) if base else (None, None)
            text = file.read_text(encoding="utf-8")
            text = redact_adapter_config(text, base=id, revision=revision, names=release.names)
            target.write_text(text, encoding="utf-8")
        else:
            copy_file(file, target)
    for name in SETTINGS:
        redact_file(folder / name, release.names)


def _fold(base: Base, adapter: Path, folder: Path) -> None:
    """Fold the adapter into its base; eos and pad ids become those of the adapter's settings."""
    place = base.root.folder() or from_hub(base.where, revision=base.revision)
    fold(place, adapter, folder)
    generation_config = adapter / "generation_config.json"
    if generation_config.is_file():
        settings = read_json(generation_config)
        eos = settings.get("eos_token_id")
        ids = {
            "eos_token_id": eos[0] if isinstance(eos, list) else eos,  # end-of-turn stands first
            "pad_token_id": settings.get("pad_token_id"),
        }
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", config | {k: v for k, v in ids.items() if v is not None})


def redact_file(file: Path, names: Mapping[str, str]) -> None:
    """Write settings without this machine's paths, if they have any."""
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    redacted = redact_settings(text, names)
    if redacted != text:
        file.unlink()  # it may be a link to the run directory's file
        file.write_text(redacted, encoding="utf-8")


def copy_file(file: Path, target: Path) -> None:
    """Make a hard link if the disk allows one, else a copy.

    Raises:
        PublishError: neither can be made.
    """
    try:
        os.link(file.resolve(), target)
    except FileNotFoundError:
        raise PublishError(
            f"{file}: isn't there; was the run directory changed just now?"
        ) from None
    except OSError:
        try:
            shutil.copyfile(file, target)
        except OSError as error:
            raise PublishError(f"{target}: can't be written: {error.strerror}") from None
