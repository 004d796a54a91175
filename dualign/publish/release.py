"""A publication on its way: the request, the release (all facts about it), the staged folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dualign.publish.base import Base
from dualign.publish.checklist import CheckResult
from dualign.publish.hub.repository import RemoteState
from dualign.publish.license import License
from dualign.publish.lineage import Lineage
from dualign.publish.manifest import Contents, Manifest
from dualign.publish.sources import DataSource
from dualign.recipe_card import CardConfig, RecipeCard, as_tuple, read_card
from dualign.switch import Switch


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishRequest:
    """The user's request. Fields that are None or empty are computed from the run directory."""

    run_dir: Path
    repo_id: str
    contents: Contents | None = None
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
    upload: bool = False
    """upload afterwards: the hub must be in reach and validates the card; else only names leave"""

    @property
    def wishes(self) -> CardConfig:
        """The recipe's card; one without a key if there is none."""
        return self.card.config if self.card else CardConfig()


def with_card(request: PublishRequest) -> PublishRequest:
    """Return the request with the card of the run's recipe where the request says nothing itself.

    Raises:
        ConfigError: the card is wrong.
    """
    card = read_card(request.run_dir.resolve().parent)
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
    """A staged folder, checked, with its card and run.json."""

    release: Release
    folder: Path
    files: Mapping[str, int]
    """name in the repository -> bytes"""
    checks: tuple[CheckResult, ...]
    card: str
    repository: RemoteState | str = "not looked up"
    """the repository on the hub, or why its state isn't known"""

    @property
    def failed(self) -> list[str]:
        return [result.name for result in self.checks if result.state == "failed"]


def staged_files(folder: Path) -> list[str]:
    """Return every file of the staged folder by its name in the repository, sorted."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
