"""Base models of a run: their hub ids, commits, licenses and languages."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualign.checkpoints.embedded import EMBEDDED
from dualign.errors import PublishError
from dualign.model_ref import HubRef
from dualign.publish.hub.metadata import HubClient, RepoMetadata, cached_commit
from dualign.publish.lineage import Root

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A model that the run started from. `id` and `revision` are the hub's; None if unknown."""

    root: Root
    id: str | None
    revision: str | None
    license: str | None = None
    languages: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name in tables and in --license-of."""
        return self.id or Path(self.root.reference).name

    @property
    def where(self) -> str:
        """The folder or hub id that loads the weights that were trained on."""
        return str(self.root.folder() or self.root.reference)


@dataclass(frozen=True, kw_only=True, slots=True)
class _EmbeddedOrigin:
    """The hub repository of a model that comes with a package."""

    id: str
    revision: str
    license: str
    languages: tuple[str, ...]


EMBEDDED_ON_THE_HUB = {
    EMBEDDED: _EmbeddedOrigin(
        id="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        license="apache-2.0",
        languages=("en",),
    )
}


def find_bases(roots: Sequence[Root], options: Sequence[str], hub: HubClient) -> tuple[Base, ...]:
    """Look up the hub id and commit of every root of a lineage.

    Args:
        options: the values of --base: ID, ID@REVISION, or REFERENCE=ID@REVISION.

    Raises:
        PublishError: --base names something that the run doesn't start from.
    """
    if not roots:  # their stages are gone, which the check on the lineage reports
        hub_ids = [parse_hub_id(option) for option in options]
        return tuple(
            _base(Root(reference=id, revision=None), (id, rev), hub) for id, rev in hub_ids
        )
    hub_id_of: dict[str, tuple[str, str | None]] = {}
    for option in options:
        reference, _, hub_id = option.rpartition("=")
        reference = reference or _only_local(roots, option)
        references = [root.reference for root in roots]
        if reference not in references:
            raise PublishError(
                f"--base {option}: the run starts from {', '.join(references)}, not from {reference}"
            )
        hub_id_of[reference] = parse_hub_id(hub_id)
    return tuple(_base(root, hub_id_of.get(root.reference), hub) for root in roots)


def parse_hub_id(name: str, option: str = "--base") -> tuple[str, str | None]:
    """Return id and revision of ID@REVISION.

    Raises:
        PublishError: it is none.
    """
    hub = HubRef.parse(name)
    if hub is None or "/" not in hub.id:
        raise PublishError(
            f"{option} {name}: expected a hub id such as owner/name or owner/name@revision, found {name!r}"
        )
    return hub


def _only_local(roots: Sequence[Root], option: str) -> str:
    """Return the one root that lies on this machine, or else the only one."""
    local = [root.reference for root in roots if root.is_local]
    candidates = local or [root.reference for root in roots]
    if len(candidates) != 1:
        raise PublishError(
            f"--base {option}: the run starts from {', '.join(candidates) or 'nothing'}; say which: "
            f"--base REFERENCE={option}"
        )
    return candidates[0]


def _base(root: Root, chosen: tuple[str, str | None] | None, hub: HubClient) -> Base:
    origin = EMBEDDED_ON_THE_HUB.get(root.reference)
    if chosen:
        id, revision = chosen
    elif origin:
        id, revision = origin.id, origin.revision
    elif not root.is_local:
        id, revision = root.reference, root.revision
    else:
        return Base(root=root, id=None, revision=None)
    metadata = hub.metadata(id, revision=revision) or RepoMetadata()
    origin = origin if origin and origin.id == id else None
    return Base(
        root=root,
        id=id,
        revision=_commit(id, revision) or metadata.commit or revision,
        license=metadata.license or (origin.license if origin else None),
        languages=metadata.languages or (origin.languages if origin else ()),
    )


def _commit(name: str, revision: str | None) -> str | None:
    """Return the commit if it is in the name or in the cache that training read."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    return cached_commit(name, revision)


def names_of(bases: Iterable[Base]) -> Mapping[str, str]:
    """Map references and folders on this machine to public names."""
    return {
        place: base.label
        for base in bases
        if base.root.is_local
        for place in (base.root.reference, str(base.root.folder()))
    }
