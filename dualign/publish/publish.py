"""The main path: a run directory -> what made it -> the files that go, staged -> checks -> card -> run.json, all before a byte leaves.

dualign publish runs/quickstart/merged you/quickstart          shows all of it
dualign publish runs/quickstart/merged you/quickstart --yes    uploads it
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp

from dualign.errors import CheckpointError, DualignError, PublishError
from dualign.publish.base import Base, find_bases, names_of
from dualign.publish.checks import checks as looks
from dualign.publish.checks.adapter import composition_check
from dualign.publish.checks.checks import Check
from dualign.publish.checks.load_test import Tried, try_out
from dualign.publish.describe import Described, describe
from dualign.publish.hub.metadata import Hub
from dualign.publish.licence import Licence, combine
from dualign.publish.lineage import Lineage, adapter_root, read_lineage
from dualign.publish.plan import Plan, What, adapter_folder, make_plan
from dualign.publish.redaction import replacements
from dualign.publish.sources import Source, licences, sources_of
from dualign.publish.stage import stage_files, staged_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for."""

    run_dir: Path
    repo_id: str
    what: What | None = None
    bases: tuple[str, ...] = ()
    licence: str | None = None
    licence_of: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    allow: frozenset[str] = frozenset()
    """names of checks that may fail"""
    ask_hub: bool = False
    """send the card to the hub's own validation; without it nothing but names leaves"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is published and what is known of it, before a file is staged."""

    request: Request
    lineage: Lineage
    plan: Plan
    bases: tuple[Base, ...]
    """what the card names as base models"""
    adapter_base: Base | None
    """what an adapter of the run directory was trained on, if there is one"""
    sources: tuple[Source, ...]
    licence: Licence
    names: Mapping[str, str]
    """place on this machine -> what it is called in what is published"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A staged folder with all that is known of it."""

    subject: Subject
    folder: Path
    files: Mapping[str, int]
    """name in the repository -> bytes"""
    checks: tuple[Check, ...]
    card: str

    def with_check(self, one: Check) -> "Prepared":
        return replace(self, checks=(*self.checks, one))

    @property
    def failed(self) -> list[str]:
        return [one.name for one in self.checks if one.state == "failed"]


@contextmanager
def staging_folder(run_dir: Path) -> Iterator[Path]:
    """A folder on the run directory's disk, so that gigabytes are linked and not copied; gone afterwards."""
    try:
        folder = Path(mkdtemp(prefix=".publish-", dir=run_dir.resolve().parent))
    except OSError:  # it can only be read
        folder = Path(mkdtemp(prefix="dualign-publish-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(request: Request, folder: Path, *, card_before: str | None = None) -> Prepared:
    """Stage into the empty `folder`, check everything, write card and run.json. Nothing leaves.

    Args:
        card_before: the card that the repository has, whose own sections are kept.

    Raises:
        DualignError: it isn't a run directory, or what was asked for can't be.
    """
    hub = Hub()
    subject = examine(request, hub)
    found = stage_and_look(subject, folder, hub)
    tried = _try(subject, folder, found)
    return finish(subject, folder, [*found, *tried.checks], tried, card_before=card_before)


def stage_and_look(subject: Subject, folder: Path, hub: Hub) -> list[Check]:
    """Stage the checkpoint's files, and look at all that can be told without loading the model."""
    found = [*_before_staging(subject, hub)]
    logger.info("staging %s of %s ...", subject.plan.what, subject.lineage.run.path)
    try:
        stage_files(
            subject.plan,
            folder,
            base=subject.adapter_base,
            adapter=adapter_folder(subject.lineage),
            names=subject.names,
        )
    except (DualignError, OSError) as error:
        found.append(Check(name="staging", state="failed", found=str(error)))
    return [*found, *_of_files(subject, folder)]


def finish(
    subject: Subject,
    folder: Path,
    found: Sequence[Check],
    tried: Tried,
    *,
    card_before: str | None = None,
) -> Prepared:
    """Write the card, figures and run.json beside the checkpoint, and look at the whole."""
    allow = subject.request.allow
    settled = looks.settle(found, allow)
    described = describe(subject, folder, settled, tried, card_before)
    settled += looks.settle(_of_the_whole(subject, folder, described), allow)
    files = {name: (folder / name).stat().st_size for name in staged_files(folder)}
    return Prepared(
        subject=subject, folder=folder, files=files, checks=tuple(settled), card=described.card
    )


def examine(request: Request, hub: Hub) -> Subject:
    """Read what made the run, find its bases on the hub, and compute the licence."""
    _require_repo_id(request.repo_id)
    lineage = read_lineage(request.run_dir)
    plan = make_plan(lineage, request.what)
    roots = list(lineage.roots())
    adapter = adapter_folder(lineage)
    own_root = (
        adapter_root(lineage, adapter)
        if adapter and (plan.what != "weights" or plan.fold)
        else None
    )
    if own_root and own_root.reference not in {root.reference for root in roots}:
        roots.append(own_root)
    bases = find_bases(roots, request.bases, hub)
    by_reference = {base.root.reference: base for base in bases}
    adapter_base = by_reference[own_root.reference] if own_root else None
    from_roots = tuple(base for base in bases if not base.root.ref.stage)
    sources = tuple(sources_of(lineage))
    licence = combine(
        licences(from_roots, sources, request.licence_of, hub),
        said=request.licence.lower() if request.licence else None,
    )
    return Subject(
        request=request,
        lineage=lineage,
        plan=plan,
        bases=(adapter_base,) if adapter_base and plan.what == "adapter" else from_roots,
        adapter_base=adapter_base,
        sources=sources,
        licence=licence,
        names=replacements(lineage, names_of(bases)),
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


def _before_staging(subject: Subject, hub: Hub) -> Iterator[Check]:
    yield looks.lineage_check(subject.lineage)
    yield looks.files_check(subject.plan)
    with_adapter = subject.adapter_base and subject.plan.what != "weights"
    named = (*subject.bases, subject.adapter_base) if with_adapter else subject.bases
    yield looks.base_check(list(dict.fromkeys(base for base in named if base)))
    if with_adapter and subject.adapter_base:
        yield looks.base_weights_check(subject.adapter_base, hub)
    faults = [subject.licence.why] if subject.licence.faults else []
    yield looks.check("licence", faults, f"{subject.licence.id}: {subject.licence.why}")


def _of_files(subject: Subject, folder: Path) -> Iterator[Check]:
    files = staged_files(folder)
    yield looks.weights_check(folder, files)
    yield looks.code_check(folder)
    yield looks.doctor_check(subject.lineage, folder)
    adapter = adapter_folder(subject.lineage)
    if adapter and subject.adapter_base:
        yield composition_check(subject.lineage, adapter, folded=subject.plan.fold)


_NEEDED = ("files", "staging", "weights", "code")


def _try(subject: Subject, folder: Path, found: Sequence[Check]) -> Tried:
    """Load and ask what is staged; of both, the weights and then the adapter."""
    broken = [one.name for one in found if one.state == "failed" and one.name in _NEEDED]
    if broken:
        why = f"not tried: {', '.join(broken)} failed"
        names = ("loads", "logits", "modes")
        skipped = tuple(Check(name=one, state="skipped", found=why) for one in names)
        return Tried(checks=skipped, answers=())
    lineage, plan = subject.lineage, subject.plan
    logger.info("loading what was staged in a fresh process, and asking it in both modes ...")
    if plan.what == "adapter":
        return try_out(lineage, folder, adapter=folder, base=subject.adapter_base)
    first = try_out(lineage, folder, adapter=None, base=None)
    if plan.what == "weights":
        return first
    second = try_out(
        lineage, folder, adapter=folder / "adapter", base=subject.adapter_base, name=" (adapter)"
    )
    return Tried(checks=first.checks + second.checks, answers=first.answers)


def _of_the_whole(subject: Subject, folder: Path, described: Described) -> list[Check]:
    """What can be looked at once the card and run.json are there."""
    from huggingface_hub import get_token

    files = staged_files(folder)
    own = [str(Path.home()) + "/", str(Path.cwd()), str(subject.lineage.output), str(folder)]
    own += [str(base.root.folder()) for base in subject.bases if base.root.folder()]
    return [
        *described.checks,
        looks.secrets_check(folder, files, token=get_token()),
        looks.paths_check(folder, files, own=[place for place in own if len(place) > 4]),
        looks.hashes_check(folder, files, described.hashes),
    ]


def stale(there: Sequence[str], staged: Sequence[str]) -> tuple[str, ...]:
    """Files of an earlier publication that would be loaded in place of these, or are of no use any more."""
    from dualign.publish.plan import is_published

    return tuple(sorted(name for name in there if name not in set(staged) and is_published(name)))


def require_new(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        CheckpointError: it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: is there already; name a folder that isn't")


def leave_copy(prepared: Prepared, out: Path) -> None:
    """Copy the staged files into the new folder `out`.

    Raises:
        CheckpointError: `out` is there and not empty.
    """
    require_new(out)
    shutil.copytree(prepared.folder, out, dirs_exist_ok=True)
