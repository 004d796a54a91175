"""A publication on its way: the request, the release (all facts about it), the staged folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dualign.errors import PublishError
from dualign.hashing import sha256
from dualign.licenses import license_id
from dualign.publish.base import Base
from dualign.publish.checklist import CheckResult
from dualign.publish.hub.repository import Gated, RemoteState
from dualign.publish.license import License, combine
from dualign.publish.lineage import Lineage
from dualign.publish.manifest import Contents, Manifest
from dualign.publish.sources import DataSource, said_licenses
from dualign.recipe_card import CardConfig, RecipeCard, as_tuple, read_card
from dualign.switch import Switch


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishRequest:
    """The user's request. Fields that are None or empty are computed from the run directory."""

    run_dir: Path
    repo_id: str
    contents: Contents | None = None
    place: str = ""
    """its folder in the repository, of an adapter that others are published with"""
    bases: tuple[str, ...] = ()
    license: str | None = None
    license_of: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    allow: frozenset[str] = frozenset()
    """names of checks that may fail"""
    switch: Switch | None = None
    """what switches the modes; None: what the checkpoint's template states or reads"""
    private: bool = True
    card: RecipeCard | None = None
    """`card:` of the recipe, which what is said here wins over"""
    quantized_of: str | None = None
    """of an exported folder: the repository of the weights that it was made from"""
    exports: tuple[Path, ...] = ()
    """exported folders of these weights, which go beside them"""
    card_only: bool = False
    """only card, records and figures go, to a repository that holds these weights"""
    pull_request: bool = False
    """open a pull request instead of a commit"""
    gated: Gated | None = None
    """how access to the files of a new repository is given; None: to all who see it"""
    upload: bool = False
    """upload afterwards: the hub must be in reach and validates the card; else only names leave"""

    @property
    def wishes(self) -> CardConfig:
        """The recipe's card; one without a key if there is none."""
        return self.card.config if self.card else CardConfig()


def require_repo_id(repo_id: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        PublishError: it is none, or has no owner.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id}: not a hub id: {error}") from None
    if "/" not in repo_id:
        raise PublishError(f"{repo_id}: expected owner/name, such as your-name/{repo_id}")


def license_of_request(request: PublishRequest, of: Mapping[str, str | None]) -> License:
    """Return the license of the whole: by --license, by the recipe's card, or the strictest."""
    card = request.wishes
    # In a pack the options hold for all adapters, and each has sources of its own.
    options = {
        name: id for name, id in request.license_of.items() if name in of or not request.place
    }
    return combine(
        said_licenses(of, options, card.license_of),
        chosen=license_id(request.license) or request.license.lower() if request.license else None,
        card=license_id(card.license) if card.license else None,
    )


def with_card(request: PublishRequest, run_dir: Path) -> PublishRequest:
    """Return the request with the card of a run's recipe where the request says nothing itself.

    Raises:
        ConfigError: the card is wrong.
    """
    card = read_card(run_dir.resolve().parent)
    if card is None:
        return request
    return replace(
        request,
        card=card,
        bases=request.bases or as_tuple(card.config.base),
        languages=request.languages or as_tuple(card.config.language),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """All facts about a publication, before a file is staged."""

    request: PublishRequest
    lineage: Lineage
    manifest: Manifest
    bases: tuple[Base, ...]
    """the base models that the card names"""
    adapter_base: Base | None
    """the base of the run directory's adapter, if it has one"""
    sources: tuple[DataSource, ...]
    license: License
    names: Mapping[str, str]
    """path on this machine -> its public name"""

    @property
    def places(self) -> list[str]:
        """Folders of this machine that no file may name."""
        folders = [base.root.folder() for base in self.bases]
        return [str(self.lineage.output), *(str(folder) for folder in folders if folder)]

    @property
    def published_adapter_base(self) -> Base | None:
        """The base that users of the published adapter load; None if only weights are published."""
        return None if self.manifest.contents == "weights" else self.adapter_base


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadTestAnswer:
    """An answer of the fresh process; run.json keeps its fields."""

    question: str
    mode: str
    thinking: str | None
    answer: str
    closed: bool
    leaked: bool
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedRelease:
    """A staged folder, checked, with its card and record."""

    request: PublishRequest
    folder: Path
    files: Mapping[str, int]
    """name in the repository -> bytes"""
    checks: tuple[CheckResult, ...]
    card: str
    message: str
    """of the commit, if the user says none"""
    left_out: tuple[tuple[str, str], ...]
    """(file, why it stays here)"""
    is_outdated: Callable[[str], bool]
    """whether a file of the repository that isn't staged has to go"""
    repository: RemoteState | str = "not looked up"
    """the repository on the hub, or why its state isn't known"""

    @property
    def failed(self) -> list[str]:
        return [result.name for result in self.checks if result.state == "failed"]


def file_sizes(folder: Path) -> dict[str, int]:
    """Return file in the repository -> bytes."""
    return {name: (folder / name).stat().st_size for name in staged_files(folder)}


def file_hashes(folder: Path) -> dict[str, str]:
    """Return file in the repository -> its sha256."""
    return {name: sha256(folder / name) for name in staged_files(folder)}


def staged_files(folder: Path) -> list[str]:
    """Return every file of the staged folder by its name in the repository, sorted."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
