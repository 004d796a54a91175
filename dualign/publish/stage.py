"""The folder that is published: links to or copies of what goes, and settings without this machine's paths."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dualign.checkpoints.adapters import fold
from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.weights import from_hub
from dualign.errors import PublishError
from dualign.publish import redaction as cleaning
from dualign.publish.base import Base
from dualign.publish.plan import SETTINGS, Plan
from dualign.rundir import write_json


def stage_files(
    plan: Plan, folder: Path, *, base: Base | None, adapter: Path | None, names: Mapping[str, str]
) -> None:
    """Put the checkpoint's files into `folder`. `base` is the adapter's; `adapter` where it lies.

    Raises:
        PublishError: a file can't be copied.
    """
    if plan.fold and base and adapter:
        _fold(base, adapter, folder)
    for name, file in plan.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # folding has put the base's there
        if file.name == "adapter_config.json":
            target.write_text(_with_base(file, base, names), encoding="utf-8")
        else:
            _link(file, target)
    for name in SETTINGS:
        _clean(folder / name, names)


def _fold(base: Base, adapter: Path, folder: Path) -> None:
    """The adapter folded into the weights it was trained on; ends and pad as its own settings say."""
    place = base.root.folder() or from_hub(base.where, revision=base.revision)
    fold(place, adapter, folder)
    own = adapter / "generation_config.json"
    if own.is_file():
        ends = read_json(own).get("eos_token_id")
        end = ends[0] if isinstance(ends, list) else ends  # the end of a turn stands first
        said = {"eos_token_id": end, "pad_token_id": read_json(own).get("pad_token_id")}
        config = read_json(folder / "config.json")
        write_json(
            folder / "config.json", config | {k: v for k, v in said.items() if v is not None}
        )


def _with_base(file: Path, base: Base | None, names: Mapping[str, str]) -> str:
    id, revision = (base.id, base.revision) if base else (None, None)
    text = file.read_text(encoding="utf-8")
    return cleaning.adapter_config(text, base=id, revision=revision, names=names)


def _clean(file: Path, names: Mapping[str, str]) -> None:
    """Write settings anew without this machine's paths, if they have any."""
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    cleaned = cleaning.settings(text, names)
    if cleaned != text:
        file.unlink()  # it may be a link to the run directory's file
        file.write_text(cleaned, encoding="utf-8")


def _link(file: Path, target: Path) -> None:
    """A hard link where the disk allows one: gigabytes aren't copied to be read once."""
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


def staged_files(folder: Path) -> list[str]:
    """Every file of the staged folder by its name in the repository, sorted."""
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())
