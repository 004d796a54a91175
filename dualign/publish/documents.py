"""The documents of a checkpoint: figures, metrics.json, the card, and run.json with hashes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dualign.evaluation.scores import ModelScores, short_label, task_names
from dualign.hashing import sha256
from dualign.publish.card.body import render_body
from dualign.publish.card.front_matter import Metadata, front_matter, make_card, relation_of
from dualign.publish.card.results import slug
from dualign.publish.checklist import CheckResult
from dualign.publish.copies import Copies
from dualign.publish.redaction import redact, redact_record
from dualign.publish.release import LoadTestAnswer, Release, file_hashes
from dualign.report.blocks import Picture
from dualign.report.budgets import budget_plots
from dualign.report.groups import is_small, task_groups, task_sources
from dualign.report.plots import accuracy_plot, group_plot, loss_plot, reward_plot
from dualign.report.runs import (
    ModelEvaluation,
    evaluations_of,
    is_preference,
    is_training,
    series,
)
from dualign.rundir import write_json
from dualign.stages import stage_kind
from dualign.version import __version__

_FIGURES = "figures"


def write_documents(
    release: Release,
    folder: Path,
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    card_before: str | None,
    copies: Copies,
) -> str:
    """Write all documents into `folder`, and return the text of the card.

    run.json is written last, as it has the hashes of the other files.
    """
    models = _models(release)
    figures = _draw_figures(release, models, folder / _FIGURES)
    _write_metrics(release, folder)
    hashes = _hashes(folder, copies)
    body = render_body(release, models, figures, hashes, checks, answers, copies.texts)
    card = str(make_card(front_matter(_metadata(release, models)), body, before=card_before))
    readme = folder / "README.md"
    readme.write_text(card, encoding="utf-8", errors="replace")
    record = _record(release, [*checks, *copies.checks], answers, copies)
    # The card is the one new file: weights are read once.
    write_json(folder / "run.json", record | {"files": hashes | {readme.name: sha256(readme)}})
    return card


def _hashes(folder: Path, copies: Copies) -> dict[str, str]:
    """Return file in the repository -> sha256, of what is staged and of copies that are there and stay."""
    return {**copies.earlier.hashes, **file_hashes(folder)}


def _models(release: Release) -> list[ModelEvaluation]:
    """Return the evaluated models of the lineage under public names, the published one last."""
    lineage = release.lineage
    bases = [*release.bases, *filter(None, [release.adapter_base])]
    ancestors = {stage.name for stage in lineage.stages} | {base.label for base in bases}
    models = []
    for model in evaluations_of(lineage.evaluations):
        label = short_label(str(redact(model.scores.model, release.names)))
        if label in ancestors:
            models.append(replace(model, scores=replace(model.scores, model=label)))
    return sorted(models, key=lambda model: model.scores.model == lineage.run.name)


def _draw_figures(
    release: Release, models: Sequence[ModelEvaluation], folder: Path
) -> dict[str, str]:
    """Write the report's plots as PNG files; return file in the repository -> caption."""
    scores = [model.scores for model in models]
    pictures = list(_accuracy_plots(release, scores))
    pictures += budget_plots(scores)
    for stage in release.lineage.training:
        if is_training(stage):
            pictures.append(loss_plot(f"loss-{stage.name}", stage.name, stage.log))
        if is_preference(stage):
            # Margins of held-out pairs if they make a line, else those of training pairs.
            keys = {
                key for row in stage.log for key in row if key.startswith("eval_rewards/margins/")
            }
            held_out = any(len(series(stage.log, key)) > 1 for key in keys)
            prefix = "eval_" if held_out else ""
            name = f"margins-{stage.name}"
            pictures.append(reward_plot(name, stage.name, stage.log, "margins", prefix))
    folder.mkdir(exist_ok=True)
    by_file = {f"{slug(picture.name)}.png": picture for picture in pictures}
    for file, picture in by_file.items():
        (folder / file).write_bytes(picture.png)
    return {f"{_FIGURES}/{file}": picture.alt for file, picture in by_file.items()}


def _accuracy_plots(release: Release, scores: Sequence[ModelScores]) -> Iterator[Picture]:
    """Yield a plot of each task; of many tasks, a plot of the last model for each group of them."""
    groups = task_groups(release.lineage.evaluations, task_names(scores))
    if is_small(groups):
        for task in task_names(scores):
            of_task = [model for model in scores if task in model.tasks]
            yield accuracy_plot(f"accuracy-{task}", task, of_task)
        return
    for title, tasks in groups.items():
        if any(task in scores[-1].tasks for task in tasks):
            yield group_plot(f"accuracy-{title or 'all'}", title, scores[-1], tasks)


def _write_metrics(release: Release, folder: Path) -> None:
    """Write metrics.json of the evaluation; by stage if several measured it."""
    metrics = {
        stage.name: redact(stage.metrics, release.names)
        for stage in release.lineage.evaluations
        if stage.metrics
    }
    if metrics:
        only = next(iter(metrics.values()))
        write_json(folder / "metrics.json", only if len(metrics) == 1 else metrics)


def _metadata(release: Release, models: Sequence[ModelEvaluation]) -> Metadata:
    lineage = release.lineage
    scores = [model.scores for model in models if model.scores.model == lineage.run.name]
    adapter = release.manifest.contents == "adapter"
    languages = dict.fromkeys(code for base in release.bases for code in base.languages)
    return Metadata(
        repo_id=release.request.repo_id,
        relation=relation_of(release.bases, {}, adapter=adapter),
        bases=release.bases,
        license=release.license.id,
        languages=release.request.languages or tuple(languages),
        sources=release.sources,
        scores=scores[0] if scores else None,
        adapter=adapter,
        merged=stage_kind(lineage.run.kind).merges,
        task_sources=task_sources(lineage.evaluations),
        wishes=release.request.wishes,
    )


def _record(
    release: Release,
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    copies: Copies,
) -> dict[str, Any]:
    """Return the public run.json without hashes: records of the stages, checks, answers."""
    lineage, names = release.lineage, release.names
    ancestors = {stage.name: redact_record(stage.record, names) for stage in lineage.stages[:-1]}
    evaluations = {stage.name: redact_record(stage.record, names) for stage in lineage.evaluations}
    for record in evaluations.values():
        record.pop("metrics", None)  # metrics.json has them
    results = [{"name": c.name, "state": c.state, "found": c.message} for c in checks]
    return {
        "schema": 1,
        **redact_record(lineage.run.record, names),
        "published": {
            "by": f"dualign {__version__}",
            "repository": release.request.repo_id,
            "what": release.manifest.contents,
            "bases": [{"id": base.id, "revision": base.revision} for base in release.bases],
            "license": redact(asdict(release.license), names),
            "checks": redact(results, names),
            "answers": [asdict(answer) for answer in answers],
            "stages": ancestors,
            "evaluations": evaluations,
            "copies": [asdict(copy) for copy in copies.copies],
        },
    }
