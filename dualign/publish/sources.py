"""The data that a run was trained on: each source of each stage, and its license."""

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.data.config import SourceConfig
from dualign.data.rows.source_files import may_be_hub_id
from dualign.data.rows.sources import source_label
from dualign.errors import PublishError
from dualign.generation.config import endpoint_of
from dualign.licenses import license_id
from dualign.model_ref import StageRef
from dualign.publish.base import Base, find_bases
from dualign.publish.hub.metadata import HubClient
from dualign.publish.lineage import Lineage, Root
from dualign.report.runs import StageRun
from dualign.stages import StageKind, stage_kind

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """A source of a stage. `modes`: mode -> (rows kept, tokens, share of the stage's tokens)."""

    stage: str
    label: str
    hub_id: str | None
    """None for a file of the user's or of the pipeline's"""
    configuration: str | None
    split: str
    revision: str | None
    made_by: str | None
    """the stage of the pipeline that made it"""
    sampled: bool
    """written by a model of this pipeline: it has no license of its own"""
    sha256: str | None
    rows: int
    kept_rows: int
    modes: Mapping[str, tuple[int, int, float]]

    @property
    def name(self) -> str:
        """Its name in the card and in --license-of."""
        return self.hub_id or self.label


def data_sources(lineage: Lineage) -> list[DataSource]:
    """List every source of the stages that train or write rows, in their order: what a model wrote
    about rows comes from them, too.
    """
    samplers = {stage.name for stage in lineage.stages if _samples_own_models(stage)}
    rows = (s for s in lineage.stages if _kind(s).trains or _kind(s).generates_rows)
    return [source for stage in rows for source in _of_stage(stage, samplers)]


def _kind(stage: StageRun) -> StageKind:
    return stage_kind(stage.kind)


def writer_licenses(lineage: Lineage, hub: HubClient) -> dict[str, str | None]:
    """Return the license of each model that wrote rows and isn't a base of the run; None if unknown."""
    roots = {root.reference for root in lineage.roots()}
    license_of: dict[str, str | None] = {}
    for model in lineage.writers():
        # What an endpoint wrote needs a license as a source of its own.
        if isinstance(model, str) and not endpoint_of(model) and model not in roots:
            (base,) = find_bases([Root(reference=model, revision=None)], (), hub)
            license_of[base.label] = base.license
    return license_of


def _samples_own_models(stage: StageRun) -> bool:
    """Return whether a stage's rows are by models of the pipeline: an endpoint's have its license."""
    asked = (stage.record.get("metrics") or {}).get("endpoints")
    return stage_kind(stage.kind).generates_rows and not asked


def _of_stage(stage: StageRun, samplers: Set[str]) -> Iterator[DataSource]:
    record = stage.record
    data = (record.get("config") or {}).get("data") or {}  # pairs of tasks have none
    configs = data.get("sources") or ()
    files = list(record.get("data") or ())
    for number, config in enumerate(configs):
        file = files[number] if len(files) == len(configs) else {}
        # A run of another version may have more keys.
        keys = {key: config[key] for key in SourceConfig.__dataclass_fields__ if key in config}
        yield _source(stage, SourceConfig(**keys), file, samplers)


def _source(
    stage: StageRun, config: SourceConfig, file: Mapping[str, Any], samplers: Set[str]
) -> DataSource:
    label = source_label(config)
    rows = stage.record.get("rows") or {}
    entries = [entry for entry in rows.get("by") or () if entry.get("source") == label]
    ref = StageRef.parse(config.path)
    maker = ref.name if ref else None
    return DataSource(
        stage=stage.name,
        label=label,
        hub_id=config.path if is_hub_id(config.path) else None,
        configuration=config.name,
        split=config.split,
        revision=config.revision,
        made_by=maker,
        sampled=maker in samplers,
        sha256=file.get("sha256"),
        rows=sum(entry.get("in") or 0 for entry in entries),
        kept_rows=sum(entry.get("kept") or 0 for entry in entries),
        modes={
            str(entry.get("mode")): (
                int(entry.get("kept") or 0), int(entry.get("tokens") or 0), float(entry.get("share") or 0)
            )
            for entry in entries
        },
    )  # fmt: skip


def is_hub_id(path: str) -> bool:
    """True if a source's path is a dataset of the hub: owner/name, and no file."""
    return "/" in path and may_be_hub_id(path) and not Path(path).exists()


def licenses(
    bases: Sequence[Base],
    sources: Sequence[DataSource],
    hub: HubClient,
    writers: Mapping[str, str | None],
) -> dict[str, str | None]:
    """Return the license of each base, writer and source by its name; None if it is unknown.

    Args:
        writers: models that wrote rows (`writer_licenses`).
    """
    license_of: dict[str, str | None] = {base.label: base.license for base in bases}
    license_of = {**writers, **license_of}
    for source in sources:
        if source.sampled:
            continue
        id, revision = source.hub_id, source.revision
        metadata = hub.metadata(id, kind="dataset", revision=revision) if id else None
        license_of[source.name] = metadata.license if metadata else license_of.get(source.name)
    return license_of


def said_licenses(
    of: Mapping[str, str | None], options: Mapping[str, str], card: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the licenses with those that the user says: --license-of wins over the recipe's card.

    A name of the card that the run hasn't may be that of another stage's source.

    Raises:
        PublishError: the run has no source of a name in `options`.
    """
    for name, license in options.items():
        if name not in of:
            raise PublishError(
                f"--license-of {name}={license}: the run has no source of that name; it has "
                f"{', '.join(of) or 'none'}"
            )
    if unused := sorted(set(card) - set(of)):
        logger.warning("card.license_of: %s: this stage has no such source", ", ".join(unused))
    chosen = {name: license for name, license in card.items() if name in of} | dict(options)
    return {**of, **{name: license_id(text) or text.lower() for name, text in chosen.items()}}
