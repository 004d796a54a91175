"""What a recipe's training stages train with, and what can be wrong between stages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.cost.plan import base_model, resolved
from dualign.doctor.findings import Fault, Findings
from dualign.engine import StageStatus
from dualign.models.source import ModelSource, resolve_model
from dualign.recipe import Recipe, StageEntry, stage_of
from dualign.stages import stage_kind
from dualign.training.isolation import unbounded_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A training stage with what of it is there: `config` starts from a model that can be loaded."""

    entry: StageEntry
    config: Any
    start: ModelSource
    waits_for: tuple[str, ...]
    """stages that haven't run, and whose files the data names"""


def training_stages(recipe: Recipe) -> list[StageEntry]:
    """The stages that train on rows."""
    return [entry for entry in recipe.stages if stage_kind(entry.kind).trains]


def as_it_starts(entry: StageEntry, found: list[StageStatus]) -> Trained:
    """The stage as it would start now. A parent that hasn't run gives way to the model at the head of
    the road, which has the same tokenizer; the template is then the nearest stage's that names one.
    """
    config, missing = resolved(entry, found)
    stages = {one.entry.name: one.entry for one in found}
    if stage_of(config.model):
        named = _named_template(entry, stages)
        config = replace(config, model=base_model(entry, stages), template=named)
    waits = [name for name in missing if _data_names(config, name)]
    return Trained(
        entry=entry,
        config=config,
        start=resolve_model(config.model, revision=config.revision),
        waits_for=tuple(waits),
    )


def road_faults(recipe: Recipe, findings: Findings) -> None:
    """Templates that change between a stage and the one it starts from, and data that may hold what is
    evaluated.
    """
    evaluated = [entry.name for entry in recipe.stages if stage_kind(entry.kind).evaluates]
    stages = {entry.name: entry for entry in recipe.stages}
    for entry in training_stages(recipe):
        if evaluated and entry.config.data.decontaminate is None:
            found = f"stage {evaluated[0]} evaluates; data.decontaminate isn't set"
            findings.add(Fault("not_decontaminated", found), source=entry.name)
        parent = stages.get(stage_of(entry.config.model) or "")
        if parent is None or not stage_kind(parent.kind).trains:
            continue
        if entry.config.template == "tokenizer":
            continue
        findings.extend(_template_changes(entry, parent), source=entry.name)


def model_faults(config: Any, model: Mapping[str, Any]) -> Iterator[Fault]:
    """Whether the model, by its config.json, can take the rows as they are packed."""
    positions = model.get("max_position_embeddings")
    if isinstance(positions, int) and config.data.max_tokens > positions:
        found = f"max_tokens is {config.data.max_tokens:,}, the model has {positions:,} positions"
        yield Fault("beyond_positions", found)
    running = unbounded_layers(model.get("layer_types"))
    if running and config.data.packing != "none":
        found = f"packing {config.data.packing}, and layers of type {', '.join(sorted(running))}"
        yield Fault("packing_not_isolated", found)


def config_file(start: ModelSource) -> Path | None:
    """config.json of the base a stage starts from, if it is on this machine."""
    path = Path(start.base) / "config.json"
    return path if path.is_file() else None


def _template_changes(entry: StageEntry, parent: StageEntry) -> Iterator[Fault]:
    for key in ("template", "template_kwargs"):
        before, after = getattr(parent.config, key), getattr(entry.config, key)
        if before != after:
            yield Fault("template_changes", f"{key} {after!r}, in stage {parent.name} {before!r}")


def _named_template(entry: StageEntry, stages: Mapping[str, StageEntry]) -> str:
    """The stage's template, or if that is the tokenizer's own, that of the stage it comes from."""
    parent = stages.get(stage_of(getattr(entry.config, "model", "")) or "")
    own = str(getattr(entry.config, "template", "tokenizer"))
    return own if own != "tokenizer" or parent is None else _named_template(parent, stages)


def _data_names(config: Any, stage: str) -> bool:
    return any(stage_of(source.path) == stage for source in config.data.sources)
