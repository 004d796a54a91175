"""What our part of the card says: use, results, training and what each stage bought, data, limits, provenance."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.evaluation.scores import ModelScores, gain_text, score_text, short_label, task_names
from dualign.publish.base import EMBEDDED_ON_THE_HUB, Base
from dualign.publish.card.snippets import Snippet, needed
from dualign.publish.card.training import bought, hyper_parameters
from dualign.publish.checks.checks import Check
from dualign.publish.checks.load_test import Answer
from dualign.publish.licence import Licence
from dualign.publish.lineage import Lineage
from dualign.publish.plan import What
from dualign.publish.redaction import cleaned
from dualign.publish.sources import Source
from dualign.report.blocks import Grid
from dualign.report.conclusions import format_finding, thinking_finding
from dualign.report.markdown import fenced, inline, table
from dualign.report.runs import Evaluated


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """All that the text is made from."""

    repo_id: str
    what: What
    relation: str
    lineage: Lineage
    bases: tuple[Base, ...]
    adapter_base: Base | None
    sources: tuple[Source, ...]
    licence: Licence
    models: tuple[Evaluated, ...]
    answers: tuple[Answer, ...]
    accepted: tuple[Check, ...]
    """failed checks that the user let pass"""
    snippets: tuple[Snippet, ...]
    figures: Mapping[str, str]
    """file in the repository -> what it shows"""
    hashes: Mapping[str, str]
    version: str
    names: Mapping[str, str]
    """place on this machine -> what it is called here"""


def body(content: Content) -> str:
    """The Markdown between the marks."""
    sections = (
        _head(content), _use(content), _results(content), _training(content), _data(content),
        _decontamination(content), _limits(content), _licence(content), _provenance(content),
    )  # fmt: skip
    return "\n\n".join("\n\n".join(part) for section in sections if (part := list(section)))


def _head(content: Content) -> Iterator[str]:
    yield f"# {inline(content.repo_id.split('/')[-1])}"
    named = ", ".join(_linked(base) for base in content.bases) or "no published model"
    thing = {
        "adapter": "A LoRA adapter that gives its base",
        "weights": "A checkpoint with",
        "both": "A checkpoint, and the adapter it was folded from (in `adapter/`), with",
    }[content.what]
    yield (
        f"{thing} two modes: on `/think` it reasons in a `<think>` block before it answers, on "
        f"`/no_think` it answers at once. Made from {named} by "
        f"{_enumerated([stage.name for stage in content.lineage.stages])}."
    )
    for one in content.accepted:
        yield f"> **Published although the check `{one.name}` failed:** {inline(one.found)}"


def _linked(base: Base) -> str:
    if base.id is None:
        return inline(base.label)
    at = f" at `{base.revision[:12]}`" if base.revision else ""
    return f"[{inline(base.id)}](https://huggingface.co/{base.id}){at}"


def _enumerated(names: Sequence[str]) -> str:
    return " -> ".join(f"`{name}`" for name in names)


def _use(content: Content) -> Iterator[str]:
    yield "## How to use it"
    yield f"```bash\n{needed(content.what)}\n```"
    for one in content.snippets:
        yield f"### {one.title}"
        yield f"```{one.language}\n{one.code}\n```"
        if one.note:
            yield one.note
    if content.answers:
        yield "What it answered when it was published, loaded from these files in a fresh process (greedy):"
        yield _answers(content.answers)


def _answers(answers: Sequence[Answer]) -> str:
    rows = []
    for one in answers:
        said = f"({one.thinking})\n{one.answer}" if one.thinking else one.answer
        rows.append((one.question, one.mode, said or "(nothing)"))
    return table(
        Grid(
            columns=("asked", "mode", "answered; thinking in brackets"), rows=tuple(rows), labels=3
        )
    )


def _results(content: Content) -> Iterator[str]:
    if not content.models:
        return
    scores = [model.scores for model in content.models]
    yield "## Results"
    yield (
        "Percent right with 95 % intervals. Gain: what thinking adds "
        "in the same model, in points; in brackets where its interval holds 0, so that it isn't measurable."
    )
    yield table(_accuracy(scores))
    yield "\n".join(
        f"![{inline(alt)}]({file})" for file, alt in content.figures.items() if "accuracy" in file
    )
    found = [thinking_finding(scores[-1]), format_finding(scores[-1])]
    yield "\n".join(f"- {inline(text)}" for text in found if text)


def _accuracy(models: Sequence[ModelScores]) -> Grid:
    rows = []
    for task in task_names(models):
        for model in (one for one in models if task in one.tasks):
            think, quick = model.score(task, "think"), model.score(task, "no_think")
            count = str((think or quick).n) if (think or quick) else "-"  # type: ignore[union-attr]
            cells = (score_text(think), score_text(quick), gain_text(model.gain(task)))
            rows.append((task, short_label(model.model), count, *cells))
    return Grid(
        columns=("task", "model", "n", "think", "no_think", "gain"), rows=tuple(rows), labels=2
    )


def _training(content: Content) -> Iterator[str]:
    yield "## Training"
    for base in content.bases:
        if base.root.reference in EMBEDDED_ON_THE_HUB:
            yield (
                f"It started from a copy of {inline(base.label)} that had been through 4 bits (Q4_1), so "
                "from slightly other weights than the hub has."
            )
    rows = [
        (stage.name, stage.kind, how)
        for stage in content.lineage.stages
        if (how := hyper_parameters(stage.record))
    ]
    yield table(Grid(columns=("stage", "kind", "how"), rows=tuple(rows), labels=3))
    findings = list(bought(content.lineage, content.models, content.names))
    if findings:
        yield "What each stage bought:"
        yield "\n".join(f"- {inline(text)}" for text in findings)
    yield "\n".join(
        f"![{inline(alt)}]({file})"
        for file, alt in content.figures.items()
        if "accuracy" not in file
    )


def _data(content: Content) -> Iterator[str]:
    if not content.sources:
        return
    yield "## Data"
    rows = []
    for one in content.sources:
        name = (
            one.hub_id
            or f"{one.label} ({f'made by stage {one.made_by}' if one.made_by else 'a file'})"
        )
        split = "/".join(filter(None, (one.configuration, one.split)))
        version = one.revision or (f"sha256 {one.sha256[:12]}" if one.sha256 else "not pinned")
        counted = ", ".join(
            f"{mode} {kept:,} rows, {tokens:,} tokens, {100 * share:.1f} %"
            for mode, (kept, tokens, share) in one.modes.items()
        )
        said = content.licence.of.get(one.name) or "not said"
        licence = "that of its model" if one.sampled else said
        rows.append(
            (one.stage, name, split, version, f"{one.kept:,} of {one.rows:,}", counted, licence)
        )
    columns = (
        "stage",
        "source",
        "split",
        "version",
        "rows kept",
        "by mode: rows, tokens, share of the stage",
        "licence",
    )
    yield table(Grid(columns=columns, rows=tuple(rows), labels=7))


def _decontamination(content: Content) -> Iterator[str]:
    yield "## Decontamination"
    yield "\n".join(
        f"- `{stage.name}`: {_screened(stage.record)}" for stage in content.lineage.training
    )


def _screened(record: Mapping[str, Any]) -> str:
    """What was left out because the evaluation asks it."""
    asked = (record["config"].get("data") or {}).get("decontaminate")
    if not asked:
        return "the rows weren't screened for problems of the evaluation."
    counted: Mapping[str, Any] = record.get("rows") or {}
    tasks = ", ".join(
        f"{inline(task)} {one.get('rows', 0)} rows"
        for task, one in (counted.get("tasks") or {}).items()
    )
    return (
        f"rows that share {asked.get('ngram', 13)} words in a row with a problem of the evaluation, or hold a "
        f"short one whole, were left out: {counted.get('dropped', {}).get('contaminated', 0)} ({tasks or 'none'})."
    )


def _limits(content: Content) -> Iterator[str]:
    yield "## Limits"
    items = ["It can be wrong in both modes, and its thinking needn't be what led to its answer."]
    if content.models:
        measured = ", ".join(task_names([one.scores for one in content.models]))
        items.append(
            f"It was measured on {measured} alone; other abilities of the base may have changed."
        )
    else:
        items.append("It wasn't evaluated.")
    items.append("It wasn't tested for safety or bias beyond what its base's authors say.")
    if content.lineage.quantised and content.what != "weights":
        items.append(
            "The adapter was trained on its base in 4 bits (NF4): load the base so, or it differs a little."
        )
    yield "\n".join(f"- {inline(text)}" for text in items)


def _licence(content: Content) -> Iterator[str]:
    yield "## Licence"
    parts = ", ".join(
        f"{inline(name)}: {one or 'not said'}" for name, one in content.licence.of.items()
    )
    yield f"`{content.licence.id or 'not known'}` ({inline(content.licence.why)}). Its parts: {parts}."


def _provenance(content: Content) -> Iterator[str]:
    yield "## Provenance"
    run = content.lineage.run.record
    versions: Mapping[str, Any] = run.get("versions") or {}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield (
        f"Made by dualign {content.version}; stage `{run['name']}`, "
        f"fingerprint `{str(run.get('fingerprint'))[:16]}`, seed {run.get('seed')}, {run.get('started', '')}. "
        f"Versions: {inline(listed)}. `run.json` has the settings of every stage and the sha256 of every file."
    )
    rows = [
        (f"{name}", digest)
        for name, digest in content.hashes.items()
        if name.endswith(".safetensors")
    ]
    if rows:
        yield table(Grid(columns=("weights", "sha256"), rows=tuple(rows), labels=2))
    commands = f"dualign run RECIPE   # then: dualign publish RUN/{run['name']} {content.repo_id}"
    yield f"<details><summary>Settings of {inline(str(run['name']))}</summary>\n\n{fenced(_settings(content))}\n\n{fenced(commands)}\n\n</details>"


def _settings(content: Content) -> str:
    config = cleaned(content.lineage.run.record.get("config") or {}, content.names)
    return json.dumps(config, indent=2, ensure_ascii=False)
