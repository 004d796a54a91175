"""The models that a run started from, by hub id and revision; and whether the hub's weights are those trained on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualign.checkpoints.checkpoint import Checkpoint
from dualign.checkpoints.embedded import EMBEDDED
from dualign.errors import DualignError, PublishError
from dualign.hashing import sha256
from dualign.model_ref import HubRef
from dualign.publish.hub.metadata import Hub, cached_commit, cached_snapshot
from dualign.publish.lineage import Root

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A model that the run started from. `id` and `revision` are the hub's; None where nobody named them."""

    root: Root
    id: str | None
    revision: str | None
    licence: str | None = None
    languages: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in tables and in --license-of."""
        return self.id or Path(self.root.reference).name

    @property
    def where(self) -> str:
        """What loads the weights that were trained on, on this machine."""
        return str(self.root.folder() or self.root.reference)


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """What is known of a model that comes with a package."""

    id: str
    revision: str
    licence: str
    languages: tuple[str, ...]


EMBEDDED_ON_THE_HUB = {
    EMBEDDED: Named(
        id="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        licence="apache-2.0",
        languages=("en",),
    )
}


def find_bases(roots: Sequence[Root], said: Sequence[str], hub: Hub) -> tuple[Base, ...]:
    """Every root of a lineage with its hub id and the commit it stands for.

    Args:
        said: what the user said by --base: ID, ID@REVISION, or REFERENCE=ID@REVISION.

    Raises:
        PublishError: --base names something that the run doesn't start from.
    """
    if not roots:  # the stage that would say it is gone, which the check on the lineage tells
        return tuple(
            _base(Root(reference=_parsed(text)[0], revision=None), _parsed(text), hub)
            for text in said
        )
    named = _said(said, roots)
    return tuple(_base(root, named.get(root.reference), hub) for root in roots)


def _said(said: Sequence[str], roots: Sequence[Root]) -> dict[str, tuple[str, str | None]]:
    found: dict[str, tuple[str, str | None]] = {}
    for text in said:
        reference, _, name = text.rpartition("=")
        reference = reference or _only_local(roots, text)
        if reference not in {root.reference for root in roots}:
            known = ", ".join(root.reference for root in roots) or "nothing"
            raise PublishError(f"--base {text}: the run starts from {known}, not from {reference}")
        found[reference] = _parsed(name)
    return found


def _parsed(name: str) -> tuple[str, str | None]:
    hub = HubRef.parse(name)
    if hub is None or "/" not in hub.id:
        raise PublishError(
            f"--base {name}: expected a hub id such as owner/name or owner/name@revision, found {name!r}"
        )
    return hub


def _only_local(roots: Sequence[Root], text: str) -> str:
    local = [root.reference for root in roots if root.is_local]
    candidates = local or [root.reference for root in roots]
    if len(candidates) != 1:
        raise PublishError(
            f"--base {text}: the run starts from {', '.join(candidates) or 'nothing'}; say which: "
            f"--base REFERENCE={text}"
        )
    return candidates[0]


def _base(root: Root, said: tuple[str, str | None] | None, hub: Hub) -> Base:
    embedded = EMBEDDED_ON_THE_HUB.get(root.reference)
    name, revision = said or (None, None)
    if name is None and embedded:
        name, revision = embedded.id, embedded.revision
    if name is None and not root.is_local:
        name, revision = root.reference, root.revision
    if name is None:
        return Base(root=root, id=None, revision=None)
    facts = hub.facts(name, revision=revision)
    known = embedded if embedded and embedded.id == name else None
    return Base(
        root=root,
        id=name,
        revision=_commit(name, revision) or (facts.commit if facts else None) or revision,
        licence=(facts.licence if facts else None) or (known.licence if known else None),
        languages=(facts.languages if facts else ()) or (known.languages if known else ()),
    )


def _commit(name: str, revision: str | None) -> str | None:
    """The commit, if it is known without the hub: said outright, or in the cache that training read."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    return cached_commit(name, revision)


def difference(base: Base, hub: Hub) -> str | None:
    """Why the hub's weights aren't those that were trained on; None where they are the same."""
    folder = base.root.folder()
    if folder is None or base.id is None:
        return None
    facts = hub.facts(base.id, revision=base.revision)
    try:
        own = {sha256(file) for file in Checkpoint(folder).files}
    except DualignError as error:
        return str(error)
    on_hub = (
        {sha for name, sha in facts.sha256.items() if name.endswith(".safetensors")}
        if facts
        else set()
    )
    if own and own <= on_hub:
        return None
    snapshot = cached_snapshot(base.id, base.revision or "")
    if snapshot:
        return _differing(folder, Path(snapshot))
    if base.root.reference in EMBEDDED_ON_THE_HUB:
        return (
            f"{base.root.reference} is {base.id} after a round trip through 4 bits (Q4_1), so on the "
            "hub's own weights the adapter isn't exact"
        )
    if facts:
        return f"its weight files have other hashes than {base.id}'s; in its cache they could be compared"
    return f"{base.id} can't be reached, so it isn't known whether its weights are those trained on"


def _differing(own: Path, other: Path) -> str | None:
    """The first tensor that isn't the same, in whatever type and file it is stored."""
    import numpy as np

    try:
        one, two = Checkpoint(own), Checkpoint(other)
    except DualignError as error:
        return str(error)
    if missing := set(one.entries) ^ set(two.entries):
        return f"only one of them has {min(missing)}"
    for name, entry in one.entries.items():
        if entry.shape != two.entries[name].shape:
            return f"{name} has another shape"
        a, b = one.reader(name), two.reader(name)
        for start in range(0, entry.size, _PIECE):
            stop = min(start + _PIECE, entry.size)
            if not np.array_equal(a.read(start, stop), b.read(start, stop)):
                return f"{name} holds other numbers"
    return None


def names_of(bases: Sequence[Base]) -> Mapping[str, str]:
    """Reference or folder -> what it is called in what is published."""
    found: dict[str, str] = {}
    for base in bases:
        if base.root.is_local:
            found[base.root.reference] = base.label
            found[str(base.root.folder())] = base.label
    return found
