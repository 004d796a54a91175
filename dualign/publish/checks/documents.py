"""Checks on everything that goes, once the card and run.json are written."""

import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import RepoCard, constants, get_token
from huggingface_hub.repocard_data import model_index_to_eval_results

from dualign.checkpoints.checkpoint import read_json
from dualign.hashing import sha256
from dualign.licenses import LICENSES
from dualign.publish.card.front_matter import RELATIONS, as_list, keys_of
from dualign.publish.checklist import CheckOutcome, judge
from dualign.publish.checks.secrets import paths_in, secrets_in
from dualign.publish.exported import RECORD, Export
from dualign.publish.release import Release, staged_files
from dualign.publish.rows import RowsRelease
from dualign.recipe_card import language_fault

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def check_card(release: Release | Export | RowsRelease, folder: Path) -> CheckOutcome:
    """The hub accepts the card: by the rules known here, and before an upload by its own."""
    kind = "dataset" if isinstance(release, RowsRelease) else "model"
    card = RepoCard((folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True)
    faults = list(metadata_faults(card))
    checked = "checked here; --yes asks the hub too"
    if release.request.upload:
        checked = "checked here"
        if not faults:
            try:
                fault = _hub_fault(card, kind)
                faults += [f"the hub refuses it: {fault}"] if fault else []
                checked = "passes the hub's validation"
            except ConnectionError:
                checked = "checked here; the hub couldn't be asked"
    keys = keys_of(card.data)
    license = keys.get("license") or "unknown"
    summary = f"{checked}; license {license}, {len(keys.get('datasets') or ())} datasets of the hub"
    if not keys.get("language"):
        summary += "; no language tag: --language CODE adds one"
    return judge(faults, summary)


def metadata_faults(card: RepoCard) -> Iterator[str]:
    """Yield what the hub would refuse or not understand, as far as that is known without it."""
    keys = keys_of(card.data)
    # Without a license the check `license` says why there is none.
    if keys.get("license") not in (None, *LICENSES):
        yield f"license: {keys.get('license')!r} isn't one that the hub knows"
    for key in ("base_model", "datasets"):
        for name in as_list(keys.get(key)):
            if not _REPO.fullmatch(name):
                yield f"{key}: {name!r} isn't a hub id (owner/name)"
    for code in as_list(keys.get("language")):
        if fault := language_fault(code):
            yield f"language: {fault}"
    if keys.get("base_model") and keys.get("base_model_relation") not in RELATIONS:
        yield f"base_model_relation: expected one of {', '.join(RELATIONS)}"
    if index := keys.get("model-index"):
        try:
            model_index_to_eval_results(index)
        except (KeyError, TypeError, ValueError) as error:
            yield f"model-index: {error}"


def _hub_fault(card: RepoCard, kind: str) -> str | None:
    """Return the objection of the hub's own validation; None if the card passes.

    Raises:
        ConnectionError: the hub can't be reached.
    """
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError
    try:
        card.validate(repo_type=kind)
    except ValueError as error:
        return str(error).strip()
    except Exception as error:
        raise ConnectionError from error
    return None


def check_secrets(release: Release | Export | RowsRelease, folder: Path) -> CheckOutcome:
    """No file holds a token or a key."""
    files = staged_files(folder)
    leaks = [
        f"{leak}: take it out of the run directory or the recipe, and revoke it if it was ever public"
        for leak in secrets_in(folder, files, token=get_token())
    ]
    return judge(leaks, f"no token or key in {len(files)} files")


def check_paths(release: Release | Export | RowsRelease, folder: Path) -> CheckOutcome:
    """No file names a path of this machine."""
    places = [f"{Path.home()}/", str(Path.cwd()), str(folder), *release.places]
    leaks = [
        f"{leak}: of no use to others, and it tells of yours; take it out"
        for leak in paths_in(
            folder, staged_files(folder), folders=[place for place in places if len(place) > 4]
        )
    ]
    return judge(leaks, "no path of this machine")


def check_hashes(release: Release | Export | RowsRelease, folder: Path) -> CheckOutcome:
    """The record has the sha256 of every other file."""
    record, key = ("run.json", "files") if not isinstance(release, Export) else (RECORD, "hashes")
    hashes = read_json(folder / record)[key]
    faults = [
        f"{name} isn't what {record} has the hash of: it changed while it was checked"
        for name in staged_files(folder)
        if name != record and hashes.get(name) != sha256(folder / name)
    ]
    return judge(faults, f"{record} has the sha256 of {len(hashes)} files")
