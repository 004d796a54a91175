"""The main path: run directory -> release -> staged files -> checks -> card and run.json.

dualign publish runs/quickstart/merged you/quickstart          shows all of it; nothing leaves
dualign publish runs/quickstart/merged you/quickstart --yes    uploads it
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dualign.errors import DualignError, PublishError
from dualign.licenses import license_id
from dualign.publish.base import find_bases, names_of
from dualign.publish.checklist import CHECKS, CheckResult, run_checks
from dualign.publish.checks.load_test import LoadTestResult, run_load_test
from dualign.publish.documents import write_documents
from dualign.publish.hub.metadata import HubClient
from dualign.publish.hub.repository import RemoteState, remote_state
from dualign.publish.hub.upload import Publication, upload
from dualign.publish.license import License, combine
from dualign.publish.lineage import adapter_root, read_lineage
from dualign.publish.manifest import is_published, make_manifest
from dualign.publish.redaction import replacements
from dualign.publish.release import (
    LoadTestAnswer,
    PublishRequest,
    Release,
    StagedRelease,
    staged_files,
    with_card,
)
from dualign.publish.sources import data_sources, licenses, said_licenses, writer_licenses
from dualign.publish.staging import stage_files
from dualign.rundir import new_folder

logger = logging.getLogger(__name__)


def prepare(request: PublishRequest, folder: Path) -> StagedRelease:
    """Stage into the empty `folder`, check everything, write card and run.json. Nothing leaves.

    Sections that users added to the repository's card are kept.

    Raises:
        DualignError: it isn't a run directory, or the request can't be met.
    """
    hub = HubClient()
    try:
        repository: RemoteState | str = remote_state(request.repo_id)
    except PublishError as error:
        repository = str(error)
    release = examine(request, hub)
    checks = stage_and_check(release, folder, hub)
    tests = _load_tests(release, folder, checks)
    for test in tests:
        checks += run_checks("load", test, allow=request.allow, suffix=test.name)
    card_before = None if isinstance(repository, str) else repository.card
    staged = finish(release, folder, checks, tests[0].answers, card_before=card_before)
    checks = run_checks("repository", request, repository)
    return replace(staged, checks=(*staged.checks, *checks), repository=repository)


def examine(request: PublishRequest, hub: HubClient) -> Release:
    """Read what made the run, find its bases on the hub, and compute the license."""
    _require_repo_id(request.repo_id)
    lineage = read_lineage(request.run_dir)
    request = with_card(request)
    manifest = make_manifest(lineage, request.contents)
    roots = {root.reference: root for root in lineage.roots()}
    needs_base = manifest.contents != "weights" or manifest.fold
    root = adapter_root(lineage) if lineage.adapter_folder and needs_base else None
    if root:
        roots.setdefault(root.reference, root)
    bases = {
        base.root.reference: base for base in find_bases(list(roots.values()), request.bases, hub)
    }
    adapter_base = bases[root.reference] if root else None
    from_roots = tuple(base for base in bases.values() if not base.root.ref.stage)
    sources = tuple(data_sources(lineage))
    return Release(
        request=request,
        lineage=lineage,
        manifest=manifest,
        bases=(adapter_base,) if adapter_base and manifest.contents == "adapter" else from_roots,
        adapter_base=adapter_base,
        sources=sources,
        license=_license(
            request, licenses(from_roots, sources, hub, writer_licenses(lineage, hub))
        ),
        names=replacements(lineage, names_of(bases.values())),
    )


def _license(request: PublishRequest, of: Mapping[str, str | None]) -> License:
    """Return the license of the whole: by --license, by the recipe's card, or the strictest."""
    card = request.wishes
    license_of = said_licenses(of, request.license_of, card.license_of)
    return combine(
        license_of,
        chosen=license_id(request.license) or request.license if request.license else None,
        card=license_id(card.license) if card.license else None,
    )


def _require_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id}: not a hub id: {error}") from None
    if "/" not in repo_id:
        raise PublishError(f"{repo_id}: expected owner/name, such as your-name/{repo_id}")


def stage_and_check(release: Release, folder: Path, hub: HubClient) -> list[CheckResult]:
    """Stage the checkpoint's files, and run all checks that don't load the model."""
    allow = release.request.allow
    checks = run_checks("release", release, hub, allow=allow)
    logger.info("staging %s of %s ...", release.manifest.contents, release.lineage.run.path)
    error = None
    try:
        stage_files(release, folder)
    except (DualignError, OSError) as fault:
        error = str(fault)
    checks += run_checks("staging", error)
    return checks + run_checks("files", release, folder, allow=allow)


def _load_tests(
    release: Release, folder: Path, checks: Sequence[CheckResult]
) -> list[LoadTestResult]:
    """Load and ask the staged model; with contents `both` the weights, then the adapter."""
    lineage, contents = release.lineage, release.manifest.contents
    needed = {spec.name for spec in CHECKS if spec.needed_to_load}
    broken = [check.name for check in checks if check.state == "failed" and check.name in needed]
    if broken:
        skipped = f"not tried: {', '.join(broken)} failed"
        return [LoadTestResult(run_dir=lineage.run.path, skipped=skipped)]
    logger.info("loading what was staged in a fresh process, and asking it in both modes ...")
    base, tests, switch = release.adapter_base, [], release.request.switch
    if contents != "adapter":
        tests.append(run_load_test(lineage, folder, adapter=None, base=None, switch=switch))
    if contents != "weights":
        adapter, name = (
            (folder, "") if contents == "adapter" else (folder / "adapter", " (adapter)")
        )
        tests.append(
            run_load_test(lineage, folder, adapter=adapter, base=base, name=name, switch=switch)
        )
    return tests


def finish(
    release: Release,
    folder: Path,
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer] = (),
    *,
    card_before: str | None = None,
) -> StagedRelease:
    """Write figures, card and run.json next to the checkpoint, and check the whole."""
    card = write_documents(release, folder, checks, answers, card_before)
    results = run_checks("documents", release, folder, allow=release.request.allow)
    return StagedRelease(
        release=release,
        folder=folder,
        files={name: (folder / name).stat().st_size for name in staged_files(folder)},
        checks=(*checks, *results),
        card=card,
    )


def stale(repository: Sequence[str], staged: Sequence[str]) -> tuple[str, ...]:
    """Return files of an earlier publication that would be loaded, or are outdated."""
    return tuple(sorted(name for name in set(repository) - set(staged) if is_published(name)))


def upload_release(staged: StagedRelease, *, message: str | None = None) -> Publication:
    """Upload the staged files in one commit, and delete what an earlier publication left.

    Raises:
        PublishError: the upload failed; the repository has the files it had before.
    """
    request, run, repository = staged.release.request, staged.release.lineage.run, staged.repository
    if isinstance(repository, str):
        raise PublishError(repository)
    return upload(
        staged.folder,
        request.repo_id,
        private=request.private,
        message=message or f"Publish {run.name} ({str(run.record.get('fingerprint'))[:12]})",
        delete=stale(tuple(repository.files), tuple(staged.files)),
        head=repository.head,
    )


def leave_copy(staged: StagedRelease, out: Path) -> None:
    """Copy the staged files into the new folder `out`.

    Raises:
        CheckpointError: `out` is there and not empty.
    """
    with new_folder(out) as work:
        shutil.copytree(staged.folder, work, dirs_exist_ok=True)
