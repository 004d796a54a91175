"""The data that a run was trained on: each source of each stage, with its revision, rows, share and licence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.data.config import SourceConfig
from dualign.data.rows.source_files import may_be_hub_id
from dualign.data.rows.sources import source_label
from dualign.errors import PublishError
from dualign.model_ref import StageRef
from dualign.publish.base import Base
from dualign.publish.hub.metadata import Hub
from dualign.publish.lineage import Lineage
from dualign.report.runs import StageRun
from dualign.stages import stage_kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One source of one stage. `modes`: mode -> (rows kept, tokens, share of the stage's tokens)."""

    stage: str
    label: str
    hub_id: str | None
    """None for a file of the user's, or of the pipeline's"""
    configuration: str | None
    split: str
    revision: str | None
    made_by: str | None
    """the stage of the pipeline that made it"""
    sampled: bool
    """made by a model of this pipeline: it brings no licence of its own"""
    sha256: str | None
    rows: int
    kept: int
    modes: Mapping[str, tuple[int, int, float]]

    @property
    def name(self) -> str:
        """What it is called in the card and in --license-of."""
        return self.hub_id or self.label


def sources_of(lineage: Lineage) -> list[Source]:
    """Every source of every training stage, in the order of training."""
    kinds = {stage.name: stage.kind for stage in lineage.stages}
    return [one for stage in lineage.training for one in _of_stage(stage, kinds)]


def _of_stage(stage: StageRun, kinds: Mapping[str, str]) -> Iterator[Source]:
    record = stage.record
    given = (record.get("config") or {}).get("data", {}).get("sources") or ()
    hashed = list(record.get("data") or ())
    for number, config in enumerate(given):
        about = hashed[number] if len(hashed) == len(given) else {}
        yield _source(stage, SourceConfig(**_known(config)), about, kinds)


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Only the keys of this version: a run of another one may have more."""
    names = SourceConfig.__dataclass_fields__
    return {key: value for key, value in config.items() if key in names}


def _source(
    stage: StageRun, config: SourceConfig, about: Mapping[str, Any], kinds: Mapping[str, str]
) -> Source:
    label = source_label(config)
    rows = stage.record.get("rows") or {}
    entries = [one for one in rows.get("by") or () if one.get("source") == label]
    ref = StageRef.parse(config.path)
    maker = ref.name if ref else None
    return Source(
        stage=stage.name,
        label=label,
        hub_id=config.path if is_hub_id(config.path) else None,
        configuration=config.name,
        split=config.split,
        revision=config.revision,
        made_by=maker,
        sampled=stage_kind(kinds.get(maker or "", "")).generates_rows,
        sha256=about.get("sha256"),
        rows=sum(one.get("in") or 0 for one in entries),
        kept=sum(one.get("kept") or 0 for one in entries),
        modes={
            str(one.get("mode")): (
                int(one.get("kept") or 0), int(one.get("tokens") or 0), float(one.get("share") or 0)
            )
            for one in entries
        },
    )  # fmt: skip


def is_hub_id(path: str) -> bool:
    """Whether a source's path is a dataset of the hub: owner/name, and no file."""
    return "/" in path and may_be_hub_id(path) and not Path(path).exists()


def licences(
    bases: Sequence[Base], sources: Sequence[Source], said: Mapping[str, str], hub: Hub
) -> dict[str, str | None]:
    """What each base and source is licensed under, by its name; None where nothing is known.

    Raises:
        PublishError: the user named a source that the run doesn't have.
    """
    found: dict[str, str | None] = {base.label: base.licence for base in bases}
    for source in sources:
        if source.sampled:
            continue
        facts = (
            hub.facts(source.hub_id, kind="dataset", revision=source.revision)
            if source.hub_id
            else None
        )
        found[source.name] = facts.licence if facts else found.get(source.name)
    for name, licence in said.items():
        if name not in found:
            raise PublishError(
                f"--license-of {name}={licence}: the run has no source of that name; it has "
                f"{', '.join(found) or 'none'}"
            )
        found[name] = licence.lower()
    return found
