"""The checks in order: a recipe's stages, a saved model, or rows with a template and a tokenizer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.embedded import embedded_model
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.rows.loading import load_source
from dualign.data.rows.sources import source_label
from dualign.data.text.template import ChatTemplate, load_template
from dualign.doctor.directory import directory_faults, read_saved
from dualign.doctor.findings import Fault, Findings
from dualign.doctor.stages import (
    Trained,
    as_it_starts,
    config_file,
    model_faults,
    road_faults,
    training_stages,
)
from dualign.doctor.survey import Subject, survey
from dualign.doctor.template import template_faults
from dualign.doctor.tokens import tokenizer_faults
from dualign.engine import statuses
from dualign.errors import ConfigError, DataError, DualignError, TemplateError
from dualign.model_ref import ModelRef
from dualign.models.source import ModelSource, resolve_model
from dualign.models.tokenizer import load_tokenizer
from dualign.recipe import Recipe
from dualign.stages import stage_kind, training_kinds
from dualign.training.config import TrainingStage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was found, and the account of the rows that were read."""

    findings: Findings
    rows: Mapping[str, Any]


def examine_recipe(recipe: Recipe) -> Diagnosis:
    """The data, template and start of every training stage, and what the finished ones left.

    Raises:
        ConfigError: the recipe has no training stage.
    """
    entries = training_stages(recipe)
    if not entries:
        raise ConfigError(f"{recipe.file}: no {training_kinds()} stage to examine")
    findings, accounts, seen = Findings(), [], set[str]()
    road_faults(recipe, findings)
    status = statuses(recipe, remember=False)
    for entry in entries:
        prefix = f"{entry.name}/" if len(entries) > 1 else ""
        try:
            stage = as_it_starts(entry, status)
        except DualignError as error:
            findings.add(Fault("tokenizer_unreadable", str(error)), source=entry.name)
            continue
        key = repr(
            (stage.config.data, stage.config.template, stage.config.template_kwargs, entry.kind)
        )
        if key not in seen:
            seen.add(key)
            accounts.append(_examine_stage(stage, prefix, findings))
    return Diagnosis(findings=findings, rows=_summed(accounts))


def examine_directory(folder: str) -> Diagnosis:
    """A saved model, adapter or run directory: its files, its template, its tokenizer."""
    ref = ModelRef.parse(folder)
    place = embedded_model(folder) if ref.kind == "embedded" else Path(ref.name)
    findings, name = Findings(), str(folder)
    saved, faults = read_saved(place)
    findings.extend(faults, source=name)
    if tokenizer := _load_saved_tokenizer(place, findings, name):
        findings.extend(directory_faults(saved, tokenizer), source=name)
        _check_saved_template(tokenizer, findings, name)
    rows = saved.run.get("rows") or {"in": 0, "kept": 0, "dropped": {}}
    return Diagnosis(findings=findings, rows=rows)


def examine_data(
    path: str, *, template: str, tokenizer: str | None, max_tokens: int, split: str
) -> Diagnosis:
    """Rows, as a stage with this template and tokenizer would train on them.

    Raises:
        DualignError: the rows, the tokenizer or the template can't be read.
    """
    source = SourceConfig(path=path, split=split)
    model = tokenizer or str(embedded_model())
    stage = TrainingStage(name="data", model=model, template=template)
    findings, name = Findings(), f"template {template}"
    loaded = _load_tokenizer(stage, _tokenizer_start(model), findings, name)
    if loaded is None:
        return Diagnosis(findings=findings, rows={})
    made, chat = loaded
    try:
        columns = set(load_source(source).column_names)
    except DataError as error:
        findings.add(Fault("source_unreadable", str(error)), source=source_label(source))
        return Diagnosis(findings=findings, rows={})
    pairs = {"chosen", "rejected"} <= columns
    data = DataConfig(sources=(source,), max_tokens=max_tokens)
    subject = Subject(pairs=pairs, data=data, tokenizer=made, template=chat, trained=False)
    rows = survey(subject, findings)
    _check_format(made, chat, findings, source=name, rows=rows)
    return Diagnosis(findings=findings, rows=rows)


def _examine_stage(stage: Trained, prefix: str, findings: Findings) -> Mapping[str, Any]:
    config, name = stage.config, stage.entry.name
    for parent in stage.waits_for:
        findings.add(
            Fault("waits_for_stage", f"reads from {parent}, which hasn't run"), source=name
        )
    if file := config_file(stage.start):
        findings.extend(model_faults(config, read_json(file)), source=name)
    loaded = _load_tokenizer(config, stage.start, findings, name)
    if loaded is None:
        return {}
    tokenizer, template = loaded
    if stage.waits_for:
        _check_format(tokenizer, template, findings, source=name)
        return {}
    subject = Subject(
        pairs=stage_kind(stage.entry.kind).takes_pairs,
        data=config.data,
        tokenizer=tokenizer,
        template=template,
        seed=stage.entry.seed,
        prefix=prefix,
    )
    rows = survey(subject, findings)
    _check_format(tokenizer, template, findings, source=name, rows=rows)
    return rows


def _load_tokenizer(
    stage: TrainingStage, start: ModelSource, findings: Findings, source: str
) -> "tuple[PreTrainedTokenizerBase, ChatTemplate] | None":
    """As training loads them; None, and a finding, where it couldn't.

    Raises:
        TemplateError: no template has that name.
    """
    try:
        return load_tokenizer(start, stage.template, stage.template_kwargs)
    except TemplateError as error:
        if not stage.template.endswith(".jinja") and stage.template != "tokenizer":
            load_template(stage.template)
        findings.add(Fault(_template_code(stage.template), str(error)), source=source)
    except (OSError, ValueError) as error:
        findings.add(Fault("tokenizer_unreadable", str(error)), source=source)
    return None


def _template_code(template: str) -> str:
    """Whether a template that training refuses is broken, or only ends its turns in plain text."""
    try:
        load_template(template)
    except TemplateError:
        return "template_unusable"
    return "no_end_of_turn"


def _check_format(
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    findings: Findings,
    *,
    source: str,
    rows: Mapping[str, Any] | None = None,
) -> None:
    """Template and tokenizer as such, and for the modes of the rows."""
    modes = {entry["mode"] for entry in (rows or {}).get("by", ()) if entry["kept"]}
    findings.extend(template_faults(template, modes=modes), source=source)
    findings.extend(tokenizer_faults(tokenizer, template), source=source)


def _check_saved_template(
    tokenizer: "PreTrainedTokenizerBase", findings: Findings, source: str
) -> None:
    if not tokenizer.chat_template:
        findings.add(Fault("no_template", "the tokenizer has no chat template"), source=source)
        return
    try:
        template = load_template("tokenizer", tokenizer=tokenizer)
    except TemplateError as error:
        findings.add(Fault("template_unusable", str(error)), source=source)
        return
    _check_format(tokenizer, template, findings, source=source)


def _load_saved_tokenizer(
    folder: Path, findings: Findings, name: str
) -> "PreTrainedTokenizerBase | None":
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        findings.add(Fault("tokenizer_unreadable", str(error)), source=name)
        return None


def _tokenizer_start(model: str) -> ModelSource:
    """A folder that holds nothing but a tokenizer will do."""
    if (Path(model) / "tokenizer_config.json").is_file():
        return ModelSource(base=model)
    return resolve_model(model)


def _summed(accounts: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    dropped: Counter[str] = Counter()
    for one in accounts:
        dropped.update(one.get("dropped", {}))
    return {
        "in": sum(one.get("in", 0) for one in accounts),
        "kept": sum(one.get("kept", 0) for one in accounts),
        "dropped": dict(sorted(dropped.items())),
        "by": [entry for one in accounts for entry in one.get("by", ())],
    }
