"""Diagnose a recipe, a saved model, or rows with a template and a tokenizer."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from dualign.checkpoints.embedded import embedded_model
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import MODES
from dualign.data.rows.known_columns import row_type_of, samples_of
from dualign.data.rows.loading import load_source
from dualign.data.rows.sources import source_label
from dualign.data.text.template import ChatTemplate, load_template
from dualign.doctor.findings import Finding, Findings
from dualign.doctor.saved_model import check_saved_model, check_tensors, read_saved_model
from dualign.doctor.stages import (
    ResolvedStage,
    check_model_config,
    check_positions,
    check_recipe,
    resolve_stage,
    training_stages,
)
from dualign.doctor.survey import SurveyInput, survey
from dualign.doctor.template import check_template
from dualign.doctor.tokens import check_tokenizer
from dualign.doctor.trials import TemplateTrials, try_rows
from dualign.engine import statuses
from dualign.errors import ConfigError, DataError, DualignError, TemplateError
from dualign.model_ref import ModelRef
from dualign.models.source import ModelSource, resolve_model
from dualign.models.tokenizer import load_tokenizer
from dualign.notebook import html_table
from dualign.recipe import Recipe
from dualign.stages import training_kinds
from dualign.switch import Switch
from dualign.training.config import TrainingStage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Findings, and ROWS of run.json for the rows that were read."""

    findings: Findings
    rows: Mapping[str, Any]
    trials: TemplateTrials | None = None
    """of a template without data"""

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows: a row for each kind of finding, worst first."""
        rows = [
            (group.severity, group.code, group.source, f"{first.message} {first.fix}", f"{count:,}")
            for group in self.findings.groups()
            for first, count in [(self.findings.listed[group][0], self.findings.counts[group])]
        ]
        columns = ("severity", "code", "where", "first finding, and what to do", "findings")
        counts = f"{self.rows.get('in', 0):,} rows in, {self.rows.get('kept', 0):,} kept"
        return html_table(columns, rows, caption=counts, text_columns=4)


def diagnose_recipe(recipe: Recipe) -> Diagnosis:
    """Check data, template, tokenizer and base of every training stage.

    Raises:
        ConfigError: the recipe has no training stage.
    """
    entries = training_stages(recipe)
    if not entries:
        raise ConfigError(f"{recipe.file}: no {training_kinds()} stage to examine")
    findings, counts, seen = Findings(), [], set[str]()
    check_recipe(recipe, findings)
    status = statuses(recipe, remember=False)
    for entry in entries:
        prefix = f"{entry.name}/" if len(entries) > 1 else ""
        try:
            stage = resolve_stage(entry, status, recipe.file.parent)
        except ConfigError as error:
            findings.add(Finding("context_unusable", str(error)), source=entry.name)
            continue
        except DualignError as error:
            findings.add(Finding("tokenizer_unreadable", str(error)), source=entry.name)
            continue
        config = stage.config
        key = repr(
            (config.data, config.template, config.template_kwargs, config.switch, entry.kind)
        )
        if key not in seen:
            seen.add(key)
            counts.append(_diagnose_stage(stage, prefix, findings))
    return Diagnosis(findings=findings, rows=_sum_rows(counts))


def diagnose_model(model: str, *, tensors: bool = False) -> Diagnosis:
    """Check files, template and tokenizer of a saved model, an adapter or a run directory.

    Args:
        tensors: also read all of its weights, for NaN and infinite values.
    """
    ref = ModelRef.parse(model)
    folder = embedded_model(model) if ref.kind == "embedded" else Path(ref.name)
    findings = Findings()
    saved, unreadable = read_saved_model(folder)
    findings.extend(unreadable, source=model)
    if tensors:
        findings.extend(check_tensors(folder), source=model)
    if tokenizer := _load_saved_tokenizer(folder, findings, model):
        findings.extend(check_saved_model(saved, tokenizer), source=model)
        _check_saved_template(tokenizer, findings, model, _trained_modes(saved.run.get("rows")))
    rows = saved.run.get("rows") or {"in": 0, "kept": 0, "dropped": {}}
    return Diagnosis(findings=findings, rows=rows)


def diagnose_data(
    path: str,
    *,
    template: str,
    tokenizer: str | None,
    max_tokens: int,
    split: str,
    switch: Switch | None = None,
) -> Diagnosis:
    """Check rows as a stage with this template and tokenizer would train on them.

    Raises:
        DualignError: the rows, the tokenizer or the template can't be read.
    """
    source = SourceConfig(path=path, split=split)
    findings, name = Findings(), f"template {template}"
    loaded = _load_template(template, tokenizer, switch, findings, name)
    if loaded is None:
        return Diagnosis(findings=findings, rows={})
    loaded_tokenizer, chat_template = loaded
    try:
        row_type = row_type_of(samples_of(load_source(source)))
    except DataError as error:
        findings.add(Finding("source_unreadable", str(error)), source=source_label(source))
        return Diagnosis(findings=findings, rows={})
    data = DataConfig(sources=(source,), max_tokens=max_tokens)
    subject = SurveyInput(
        row_type=row_type,
        data=data,
        tokenizer=loaded_tokenizer,
        template=chat_template,
        trained=False,
    )
    rows = survey(subject, findings)
    modes = _trained_modes(rows)
    _check_format(loaded_tokenizer, chat_template, findings, source=name, modes=modes, proven=modes)
    return Diagnosis(findings=findings, rows=rows)


def diagnose_template(
    template: str | None, *, tokenizer: str | None, switch: Switch | None = None
) -> Diagnosis:
    """Try rows of ten kinds in both modes, as a stage with this template and tokenizer would train
    them. `template` None: the tokenizer's own.

    Raises:
        ConfigError: neither is named.
        DualignError: the tokenizer or the template can't be read.
    """
    if template is None and tokenizer is None:
        raise ConfigError(
            "nothing to examine: expected a recipe, a model folder, data, or a template (--template X "
            "--tokenizer MODEL_DIR)"
        )
    template = template or "tokenizer"
    findings, name = Findings(), f"template {template}"
    loaded = _load_template(template, tokenizer, switch, findings, name)
    if loaded is None:
        return Diagnosis(findings=findings, rows={})
    trials = try_rows(*loaded)
    proven = {trial.mode for trial in trials.trials if not trial.code}
    _check_format(*loaded, findings, source=name, proven=proven)
    kept = sum(not trial.code for trial in trials.trials)
    dropped = Counter(trial.code for trial in trials.trials if trial.code)
    rows = {"in": len(trials.trials), "kept": kept, "dropped": dict(sorted(dropped.items()))}
    return Diagnosis(findings=findings, rows=rows, trials=trials)


def _diagnose_stage(stage: ResolvedStage, prefix: str, findings: Findings) -> Mapping[str, Any]:
    config, name = stage.config, stage.entry.name
    for parent in stage.waits_for:
        findings.add(
            Finding("waits_for_stage", f"reads from {parent}, which hasn't run"), source=name
        )
    findings.extend(check_model_config(config, stage.model), source=name)
    loaded = _load_tokenizer(
        config, stage.start, findings, name, folds_system=config.data.folds_system
    )
    if loaded is None:
        return {}
    tokenizer, template = loaded
    if stage.waits_for:
        findings.extend(check_positions(config, stage.model, {}), source=name)
        _check_format(tokenizer, template, findings, source=name)
        return {}
    subject = SurveyInput(
        row_type=config.row_type,
        data=config.data,
        tokenizer=tokenizer,
        template=template,
        seed=stage.entry.seed,
        prefix=prefix,
        new_tokens=[token.text for token in config.new_tokens],
    )
    rows = survey(subject, findings)
    findings.extend(check_positions(config, stage.model, rows), source=name)
    modes = _trained_modes(rows)
    _check_format(tokenizer, template, findings, source=name, modes=modes, proven=modes)
    return rows


def _load_template(
    template: str, tokenizer: str | None, switch: Switch | None, findings: Findings, source: str
) -> "tuple[PreTrainedTokenizerBase, ChatTemplate] | None":
    """Load a template with a model's tokenizer, as `_load_tokenizer`; None: the embedded model's."""
    model = tokenizer or str(embedded_model())
    stage = TrainingStage(name="doctor", model=model, template=template, switch=switch)
    return _load_tokenizer(stage, _tokenizer_start(model), findings, source)


def _load_tokenizer(
    stage: TrainingStage,
    start: ModelSource,
    findings: Findings,
    source: str,
    *,
    folds_system: bool = False,
) -> "tuple[PreTrainedTokenizerBase, ChatTemplate] | None":
    """Load tokenizer and template as training does; add a finding and return None if that fails.

    Raises:
        TemplateError: no template has that name.
    """
    try:
        return load_tokenizer(
            start,
            stage.template,
            stage.template_kwargs,
            stage.switch,
            folds_system=folds_system,
            new_tokens=stage.new_tokens,
        )
    except TemplateError as error:
        if not stage.template.endswith(".jinja") and stage.template != "tokenizer":
            load_template(stage.template)
        findings.add(Finding(_template_code(stage.template), str(error)), source=source)
    except (OSError, ValueError) as error:
        refused = str(error).startswith("add_tokens:")
        code = "new_token_refused" if refused else "tokenizer_unreadable"
        findings.add(Finding(code, str(error)), source=source)
    return None


def _template_code(template: str) -> str:
    """Return the code of a template that training refuses: broken, or without an end of turn."""
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
    modes: Collection[str] = (),
    proven: Collection[str] = (),
) -> None:
    """Check template and tokenizer; for `modes` and `proven` see `check_template`."""
    findings.extend(check_template(template, modes=modes, proven=proven), source=source)
    findings.extend(check_tokenizer(tokenizer, template), source=source)


def _trained_modes(rows: Mapping[str, Any] | None) -> set[str]:
    """Return the modes of which rows were kept, in ROWS of run.json."""
    kept = {entry["mode"] for entry in (rows or {}).get("by", ()) if entry.get("kept")}
    return kept & set(MODES)  # raw text has none


def _check_saved_template(
    tokenizer: "PreTrainedTokenizerBase", findings: Findings, source: str, proven: Collection[str]
) -> None:
    if not tokenizer.chat_template:
        findings.add(Finding("no_template", "the tokenizer has no chat template"), source=source)
        return
    try:
        template = load_template("tokenizer", tokenizer=tokenizer)
    except TemplateError as error:
        findings.add(Finding("template_unusable", str(error)), source=source)
        return
    _check_format(tokenizer, template, findings, source=source, proven=proven)


def _load_saved_tokenizer(
    folder: Path, findings: Findings, name: str
) -> "PreTrainedTokenizerBase | None":
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        findings.add(Finding("tokenizer_unreadable", str(error)), source=name)
        return None


def _tokenizer_start(model: str) -> ModelSource:
    """Accept a folder that holds only a tokenizer."""
    if (Path(model) / "tokenizer_config.json").is_file():
        return ModelSource(base=model)
    return resolve_model(model)


def _sum_rows(counts: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    dropped: Counter[str] = Counter()
    for rows in counts:
        dropped.update(rows.get("dropped", {}))
    return {
        "in": sum(rows.get("in", 0) for rows in counts),
        "kept": sum(rows.get("kept", 0) for rows in counts),
        "dropped": dict(sorted(dropped.items())),
        "by": [entry for rows in counts for entry in rows.get("by", ())],
    }
