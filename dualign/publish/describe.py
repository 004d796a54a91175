"""What tells of the checkpoint: figures, metrics.json, the card and run.json with every file's sha256."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign import __version__
from dualign.evaluation.scores import short_label
from dualign.hashing import sha256
from dualign.publish.card import metadata as cards
from dualign.publish.card.body import Content, body
from dualign.publish.card.snippets import QUESTION, Use, snippets
from dualign.publish.checks.checks import Check, check
from dualign.publish.checks.load_test import Tried, questions_of
from dualign.publish.redaction import cleaned, record_of
from dualign.publish.sources import is_hub_id
from dualign.publish.stage import staged_files
from dualign.report.plots import accuracy_plot, loss_plot, reward_plot
from dualign.report.runs import Evaluated, StageRun, evaluated, is_preference, is_training, series
from dualign.rundir import write_json
from dualign.stages import stage_kind

if TYPE_CHECKING:
    from dualign.publish.publish import Subject

FIGURES = "figures"
_LONGEST = 160  # characters of a problem that fits a snippet


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """The card's text, the hashes that run.json has, and what was checked on the way."""

    card: str
    hashes: Mapping[str, str]
    checks: tuple[Check, ...]


def describe(
    subject: "Subject",
    folder: Path,
    found: Sequence[Check],
    tried: Tried,
    card_before: str | None,
) -> Described:
    """Write all of it into `folder`; run.json last, as it has the hashes of the others."""
    models = _models(subject)
    figures = _draw(subject, models, folder / FIGURES)
    _write_metrics(subject, folder)
    weights = {name: sha256(folder / name) for name in staged_files(folder)}
    card = _card(subject, models, figures, weights, found, tried, card_before)
    (folder / "README.md").write_text(str(card), encoding="utf-8", errors="replace")
    hashes = {name: sha256(folder / name) for name in staged_files(folder)}
    write_json(folder / "run.json", _record(subject, found, tried, hashes))
    return Described(
        card=str(card), hashes=hashes, checks=(card_check(card, ask_hub=subject.request.ask_hub),)
    )


def card_check(card: Any, *, ask_hub: bool) -> Check:
    """Whether the card passes: what can be told here, and with `ask_hub` the hub's own validation, if it is in reach."""
    faults = list(cards.metadata_faults(card))
    where = "checked here" if ask_hub else "checked here; --yes asks the hub too"
    if ask_hub and not faults:
        try:
            fault = cards.hub_fault(card)
            faults += [f"the hub refuses it: {fault}"] if fault else []
            where = "passes the hub's validation"
        except ConnectionError:
            where = "checked here; the hub couldn't be asked"
    about = cards.keys_of(card.data)
    told = f"{where}; license {about.get('license')}, {len(about.get('datasets') or ())} datasets of the hub"
    silent = [] if about.get("language") else ["no language tag: --language CODE adds one"]
    return check("card", faults, "; ".join([told, *silent]))


def _models(subject: "Subject") -> tuple[Evaluated, ...]:
    """The evaluated models that this one came from, and itself last, under names without paths."""
    ours = {stage.name for stage in subject.lineage.stages} | {base.label for base in subject.bases}
    ours |= {base.label for base in [subject.adapter_base] if base}
    found = []
    for model in evaluated(subject.lineage.evaluations):
        label = short_label(str(cleaned(model.scores.model, subject.names)))
        if label in ours:
            found.append(
                Evaluated(scores=replace(model.scores, model=label), samples=model.samples)
            )
    own = subject.lineage.run.name
    return tuple(sorted(found, key=lambda model: model.scores.model == own))


def _draw(subject: "Subject", models: Sequence[Evaluated], folder: Path) -> dict[str, str]:
    """The report's plots as PNG files; file in the repository -> what it shows."""
    scores = [model.scores for model in models]
    tasks = dict.fromkeys(task for model in scores for task in model.tasks)
    pictures = [
        accuracy_plot(f"accuracy-{task}", task, [one for one in scores if task in one.tasks])
        for task in tasks
    ]
    for stage in subject.lineage.training:
        if is_training(stage):
            pictures.append(loss_plot(f"loss-{stage.name}", stage.name, stage.log))
        if is_preference(stage):
            pictures += [
                reward_plot(f"margins-{stage.name}", stage.name, stage.log, "margins", prefix)
                for prefix in _logged(stage)
            ]
    folder.mkdir(exist_ok=True)
    named = {cards.slug(picture.name): picture for picture in pictures}
    for name, picture in named.items():
        (folder / f"{name}.png").write_bytes(picture.png)
    return {f"{FIGURES}/{name}.png": picture.alt for name, picture in named.items()}


def _logged(stage: StageRun) -> list[str]:
    """Which margins are drawn: those of held-out pairs where they make a line, else those of training pairs."""
    keys = {key for row in stage.log for key in row if key.startswith("eval_rewards/margins/")}
    held_out = any(len(series(stage.log, key)) > 1 for key in keys)
    return ["eval_"] if held_out else [""]


def _write_metrics(subject: "Subject", folder: Path) -> None:
    """metrics.json of the evaluation; by stage where several measured it."""
    found = {
        stage.name: cleaned(stage.metrics, subject.names)
        for stage in subject.lineage.evaluations
        if stage.metrics
    }
    if found:
        write_json(
            folder / "metrics.json", next(iter(found.values())) if len(found) == 1 else found
        )


def _card(
    subject: "Subject",
    models: tuple[Evaluated, ...],
    figures: Mapping[str, str],
    hashes: Mapping[str, str],
    found: Sequence[Check],
    tried: Tried,
    before: str | None,
) -> Any:
    lineage, plan = subject.lineage, subject.plan
    own = [one.scores for one in models if one.scores.model == lineage.run.name]
    adapter = plan.what == "adapter"
    relation = cards.relation_of(subject.bases, {}, adapter=adapter)
    about = cards.Metadata(
        repo_id=subject.request.repo_id,
        relation=relation,
        bases=subject.bases,
        licence=subject.licence.id,
        languages=subject.request.languages or _languages(subject),
        sources=subject.sources,
        scores=own[0] if own else None,
        adapter=adapter,
        merged=stage_kind(lineage.run.kind).merges,
        data_names=_task_data(lineage.evaluations),
    )
    content = Content(
        repo_id=subject.request.repo_id,
        what=plan.what,
        relation=relation,
        lineage=lineage,
        bases=subject.bases,
        adapter_base=subject.adapter_base,
        sources=subject.sources,
        licence=subject.licence,
        models=models,
        answers=tried.answers,
        accepted=tuple(one for one in found if one.state == "allowed"),
        snippets=tuple(snippets(_use(subject))),
        figures=figures,
        hashes=hashes,
        version=__version__,
        names=subject.names,
    )
    return cards.make_card(cards.front_matter(about), body(content), before=before)


def _task_data(evaluations: Sequence[StageRun]) -> dict[str, str]:
    """Task -> the dataset of the hub that its problems are from."""
    found: dict[str, str] = {}
    for stage in evaluations:
        # The record has the tasks' data first, in their order, then the files of pairs.
        pairs = zip(
            (stage.metrics or {}).get("tasks", ()), stage.record.get("data") or (), strict=False
        )
        found |= {task: one["source"] for task, one in pairs if is_hub_id(str(one.get("source")))}
    return found


def _languages(subject: "Subject") -> tuple[str, ...]:
    return tuple(dict.fromkeys(code for base in subject.bases for code in base.languages))


def _use(subject: "Subject") -> Use:
    asked, _ = questions_of(subject.lineage)
    fits = [one for one in asked if len(one) <= _LONGEST and not set("\"'\\\n`${}") & set(one)]
    base = subject.adapter_base
    return Use(
        repo_id=subject.request.repo_id,
        what=subject.plan.what,
        base=(base.id if base else None) or "BASE",
        revision=(base.revision if base else None) or "main",
        rank=sum(
            (one.record["config"].get("lora") or {}).get("r") or 0
            for one in subject.lineage.training
        ),
        question=fits[0] if fits else QUESTION,
    )


def _record(
    subject: "Subject", found: Sequence[Check], tried: Tried, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """run.json for the public: the stage's own record, those of the stages above it, checks, and every file's hash."""
    lineage, names = subject.lineage, subject.names
    above = {stage.name: record_of(stage.record, names) for stage in lineage.stages[:-1]}
    measured = {stage.name: record_of(stage.record, names) for stage in lineage.evaluations}
    for record in measured.values():
        record.pop("metrics", None)  # metrics.json has them
    return {
        "schema": 1,
        **record_of(lineage.run.record, names),
        "published": {
            "by": f"dualign {__version__}",
            "repository": subject.request.repo_id,
            "what": subject.plan.what,
            "bases": [{"id": base.id, "revision": base.revision} for base in subject.bases],
            "licence": cleaned(asdict(subject.licence), names),
            "checks": cleaned([asdict(one) for one in found], names),
            "answers": [asdict(one) for one in tried.answers],
            "stages": above,
            "evaluations": measured,
        },
        "files": dict(hashes),
    }
