"""Training stages of a recipe as they would start now, and checks between stages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.checkpoints.context import positions_of
from dualign.cost.measured import base_model
from dualign.cost.plan import resolve_references
from dualign.cost.start_config import model_config
from dualign.doctor.findings import Finding, Findings
from dualign.engine import StageStatus
from dualign.models.source import ModelSource, resolve_model
from dualign.recipe import Recipe, StageEntry, stage_of
from dualign.stages import stage_kind
from dualign.training.isolation import unbounded_layers
from dualign.training.positions import longest_document, why_not_by_longest


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedStage:
    """A training stage whose `config` names a model that can be loaded now."""

    entry: StageEntry
    config: Any
    start: ModelSource
    waits_for: tuple[str, ...]
    """stages that haven't run and whose files the data needs"""
    model: Mapping[str, Any]
    """config.json of the model that trains, with its positions; empty if it isn't here"""


def training_stages(recipe: Recipe) -> list[StageEntry]:
    """Return the stages that train on rows."""
    return [entry for entry in recipe.stages if stage_kind(entry.kind).trains]


def resolve_stage(entry: StageEntry, statuses: list[StageStatus], folder: Path) -> ResolvedStage:
    """Return the stage as it would start now. `folder` is the recipe's.

    Instead of a parent that hasn't run, it starts from the first model of the pipeline, which has
    the same tokenizer, with the template of the nearest stage that names one.

    Raises:
        ConfigError: a `context` on the way can't be.
        DualignError: its model isn't there.
    """
    config, missing = resolve_references(entry, statuses)
    stages = {status.entry.name: status.entry for status in statuses}
    if stage_of(config.model):
        template = _named_template(entry, stages)
        config = replace(config, model=base_model(entry, stages), template=template)
    waits = [name for name in missing if _data_names(config, name)]
    return ResolvedStage(
        entry=entry,
        config=config,
        start=resolve_model(config.model, revision=config.revision),
        waits_for=tuple(waits),
        model=model_config(entry, statuses, folder),
    )


def check_recipe(recipe: Recipe, findings: Findings) -> None:
    """Find templates that change between stages, and data that may contain evaluated problems."""
    evaluations = [entry.name for entry in recipe.stages if stage_kind(entry.kind).evaluates]
    stages = {entry.name: entry for entry in recipe.stages}
    for entry in training_stages(recipe):
        if evaluations and entry.config.data.decontaminate is None:
            message = f"stage {evaluations[0]} evaluates; data.decontaminate isn't set"
            findings.add(Finding("not_decontaminated", message), source=entry.name)
        parent = stages.get(stage_of(entry.config.model) or "")
        if parent is None or not stage_kind(parent.kind).trains:
            continue
        if entry.config.template == "tokenizer":
            continue
        findings.extend(_template_changes(entry, parent), source=entry.name)


def check_model_config(config: Any, model: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that the model, by its config.json, can take the rows as they are packed."""
    if reason := why_not_by_longest(config, model):
        yield Finding("positions_of_longest", reason)
    unbounded = unbounded_layers(model.get("layer_types"))
    if unbounded and config.data.packing != "none":
        message = (
            f"packing {config.data.packing}, and layers of type {', '.join(sorted(unbounded))}"
        )
        yield Finding("packing_not_isolated", message)


def check_positions(
    config: Any, model: Mapping[str, Any], rows: Mapping[str, Any]
) -> Iterator[Finding]:
    """Find rows that are longer than the model's positions.

    Args:
        rows: ROWS of the stage; empty if they aren't known, and may be as long as `max_tokens`.
    """
    positions = positions_of(model)
    longest = longest_document(config, rows or None)
    if positions is not None and longest > positions:
        may = "have" if rows else "may have"
        message = f"rows {may} up to {longest:,} tokens, and the model has {positions:,} positions"
        yield Finding("beyond_positions", message)


def _template_changes(entry: StageEntry, parent: StageEntry) -> Iterator[Finding]:
    for key in ("template", "template_kwargs"):
        before, after = getattr(parent.config, key), getattr(entry.config, key)
        if before != after:
            yield Finding("template_changes", f"{key} {after!r}, in stage {parent.name} {before!r}")


def _named_template(entry: StageEntry, stages: Mapping[str, StageEntry]) -> str:
    """Return the stage's template; if that is the tokenizer's own, its parent's."""
    parent = stages.get(stage_of(getattr(entry.config, "model", "")) or "")
    template = str(getattr(entry.config, "template", "tokenizer"))
    if template != "tokenizer" or parent is None:
        return template
    return _named_template(parent, stages)


def _data_names(config: Any, stage: str) -> bool:
    return any(stage_of(source.path) == stage for source in config.data.sources)
