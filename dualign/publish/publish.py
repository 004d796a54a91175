"""The main path: run directory -> release -> staged files -> checks -> card and run.json.

dualign publish runs/quickstart/merged you/quickstart          shows all of it; nothing leaves
dualign publish runs/quickstart/merged you/quickstart --yes    uploads it
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dualign.errors import DualignError, PublishError
from dualign.publish.base import find_bases, names_of
from dualign.publish.checklist import CHECKS, CheckResult, run_checks
from dualign.publish.checks.load_test import LoadTestResult, run_load_test
from dualign.publish.copies import Copies, read_copies, stage_copies
from dualign.publish.dataset import holds_rows, prepare_dataset
from dualign.publish.documents import write_documents
from dualign.publish.export import prepare_export
from dualign.publish.exported import is_export
from dualign.publish.hub.collections import join_collection
from dualign.publish.hub.metadata import HubClient
from dualign.publish.hub.repository import RemoteState, RepoKind, remote_state
from dualign.publish.hub.upload import Publication, upload
from dualign.publish.lineage import adapter_root, read_lineage
from dualign.publish.manifest import is_document, is_published, make_manifest
from dualign.publish.redaction import replacements
from dualign.publish.release import (
    LoadTestAnswer,
    PublishRequest,
    Release,
    StagedRelease,
    file_sizes,
    license_of_request,
    require_repo_id,
    with_card,
)
from dualign.publish.sources import data_sources, licenses, writer_licenses
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
    rows = holds_rows(request.run_dir)
    repository = _look(request, "dataset" if rows else "model")
    if not isinstance(repository, str) and repository.gated and not request.gated:
        request = replace(request, gated=repository.gated)  # the card says how to get access
    if rows:
        return _with_repository(
            prepare_dataset(request, folder, hub, _card_of(repository)), repository
        )
    if request.quantized_of or is_export(request.run_dir):
        return _with_repository(
            prepare_export(request, folder, hub, _card_of(repository)), repository
        )
    release = examine(request, hub)
    exports = read_copies(release)
    checks = stage_and_check(release, folder, hub)
    copies = stage_copies(exports, release, folder, repository)
    tests = _load_tests(release, folder, checks)
    for test in tests:
        checks += run_checks("load", test, allow=request.allow, suffix=test.name)
    before = _card_of(repository)
    staged = finish(release, folder, checks, tests[0].answers, card_before=before, copies=copies)
    return _with_repository(staged, repository)


def _look(request: PublishRequest, kind: RepoKind) -> RemoteState | str:
    """Return the repository on the hub, or why its state isn't known."""
    try:
        return remote_state(request.repo_id, kind=kind)
    except PublishError as error:
        return str(error)


def _card_of(repository: RemoteState | str) -> str | None:
    """Return README.md as it is on the hub."""
    return None if isinstance(repository, str) else repository.card


def _with_repository(staged: StagedRelease, repository: RemoteState | str) -> StagedRelease:
    """Return the staged folder with the state of its repository, checked; the card alone if asked."""
    request, folder = staged.request, staged.folder
    checks = run_checks("repository", request, repository)
    if request.card_only:
        checks += run_checks("card_only", folder, repository, request.upload)
        for name in staged.files:
            if not is_document(name):
                (folder / name).unlink()
        staged = replace(staged, files=file_sizes(folder), is_outdated=_is_old_figure)
    return replace(staged, checks=(*staged.checks, *checks), repository=repository)


def _is_old_figure(name: str) -> bool:
    return is_document(name) and name.startswith("figures/")


def examine(request: PublishRequest, hub: HubClient) -> Release:
    """Read what made the run, find its bases on the hub, and compute the license."""
    require_repo_id(request.repo_id)
    lineage = read_lineage(request.run_dir)
    request = with_card(request, request.run_dir)
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
        license=license_of_request(
            request, licenses(from_roots, sources, hub, writer_licenses(lineage, hub))
        ),
        names=replacements(lineage, names_of(bases.values())),
    )


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
    copies: Copies | None = None,
) -> StagedRelease:
    """Write figures, card and run.json next to the checkpoint, and check the whole."""
    copies = copies or Copies()
    card = write_documents(release, folder, checks, answers, card_before, copies)
    results = run_checks("documents", release, folder, allow=release.request.allow)
    run = release.lineage.run
    return StagedRelease(
        request=release.request,
        folder=folder,
        files=file_sizes(folder),
        checks=(*checks, *copies.checks, *results),
        card=card,
        message=f"Publish {run.name} ({str(run.record.get('fingerprint'))[:12]})",
        left_out=(*release.manifest.left_out, *copies.left_out),
        is_outdated=lambda name: is_published(name) or name in copies.earlier.outdated,
    )


def stale(
    repository: Sequence[str],
    staged: Sequence[str],
    is_outdated: Callable[[str], bool] = is_published,
) -> tuple[str, ...]:
    """Return files of an earlier publication that would be loaded, or are outdated."""
    return tuple(sorted(name for name in set(repository) - set(staged) if is_outdated(name)))


def upload_release(staged: StagedRelease, *, message: str | None = None) -> Publication:
    """Upload the staged files in one commit, and delete what an earlier publication left.

    Raises:
        PublishError: the upload failed; the repository has the files it had before.
    """
    request, repository = staged.request, staged.repository
    if isinstance(repository, str):
        raise PublishError(repository)
    publication = upload(
        staged.folder,
        request.repo_id,
        private=request.private,
        message=message or staged.message,
        delete=stale(tuple(repository.files), tuple(staged.files), staged.is_outdated),
        head=repository.head,
        kind=repository.kind,
        gated=request.gated,
        pull_request=request.pull_request,
    )
    if not request.wishes.collection or publication.pull_request:
        return publication
    return _collected(publication, request, repository.kind)


def _collected(publication: Publication, request: PublishRequest, kind: RepoKind) -> Publication:
    """Add the repository to the collection of its card; a failure leaves the upload as it is."""
    collection = str(request.wishes.collection)
    try:
        url = join_collection(collection, request.repo_id, kind, private=request.private)
    except PublishError as error:
        return replace(publication, collection_fault=str(error))
    return replace(publication, collection=url)


def leave_copy(staged: StagedRelease, out: Path) -> None:
    """Copy the staged files into the new folder `out`.

    Raises:
        CheckpointError: `out` is there and not empty.
    """
    with new_folder(out) as work:
        shutil.copytree(staged.folder, work, dirs_exist_ok=True)
