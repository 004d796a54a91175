"""The text of the card: card.md.jinja, filled with the facts of a release."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Template

from dualign.checkpoints.patterns import has_whole_tensors, largest_rank
from dualign.data.conversation import MODES, Mode
from dualign.evaluation.budget_table import budget_rows
from dualign.evaluation.scores import ModelScores, gain_text, score_text, short_label, task_names
from dualign.generation.vllm import max_lora_rank
from dualign.models.prompts import saved_switch
from dualign.publish.base import EMBEDDED_ON_THE_HUB
from dualign.publish.card.tables import further_tables
from dualign.publish.card.training import hyper_parameters, new_tokens, stage_findings
from dualign.publish.checklist import CheckResult
from dualign.publish.manifest import Contents
from dualign.publish.redaction import redact
from dualign.publish.release import LoadTestAnswer, Release
from dualign.report.budgets import budget_figures
from dualign.report.conclusions import format_finding, thinking_finding
from dualign.report.render import environment
from dualign.report.runs import ModelEvaluation
from dualign.switch import ENABLE_THINKING, Switch
from dualign.version import __version__

_QUESTION = "Add 17, 28 and 5."
_MAX_CHARACTERS = 160  # of a question that fits a snippet
_TEMPLATES = environment(Path(__file__).parent)


def template(name: str) -> Template:
    """Return a template of this folder."""
    return _TEMPLATES.get_template(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The facts of the code snippets. `rank`: of the adapter."""

    repo_id: str
    contents: Contents
    base: str
    revision: str
    rank: int
    whole_tensors: bool = False
    """the adapter has some besides its factors, which servers don't take"""
    question: str = _QUESTION
    switch: Switch = ENABLE_THINKING
    packages: tuple[str, ...] = ()
    """what has to be installed besides, to load it"""
    converts: bool = True
    """llama.cpp's scripts read it"""
    subfolder: str = ""
    """of the repository, where it lies beside weights or other adapters"""
    copies: tuple[str, ...] = ()
    """folders of copies that lie beside it"""

    @property
    def max_lora_rank(self) -> int:
        """The --max-lora-rank of vLLM."""
        return max_lora_rank(self.rank) or self.rank

    @property
    def usual(self) -> bool:
        """Whether enable_thinking switches the modes, as in most families."""
        return self.switch == ENABLE_THINKING

    def how(self, mode: Mode) -> str:
        """Say what switches to a mode."""
        entry = self.switch.of(mode)
        parts = [f"`{entry['system']}` in the system message"] if "system" in entry else []
        parts += [f"`{name}={value!r}`" for name, value in self.switch.variables(mode).items()]
        return " and ".join(parts) or "the default"

    @property
    def modes(self) -> list[tuple[Mode, str, str, str]]:
        """Return for each mode its Python messages, its Python arguments and its JSON request."""
        listed = []
        for mode in MODES:
            turns = self.switch.with_system([{"role": "user", "content": self.question}], mode)
            variables = self.switch.variables(mode)
            options = "".join(f"{name}={value!r}, " for name, value in variables.items())
            request = {"messages": turns, "chat_template_kwargs": variables}
            quoted = json.dumps(request, ensure_ascii=False)[1:-1].replace("'", "'\\''")
            listed.append((mode, repr(turns), options, quoted))
        return listed


def render_body(
    release: Release,
    models: Sequence[ModelEvaluation],
    figures: Mapping[str, str],
    hashes: Mapping[str, str],
    checks: Sequence[CheckResult],
    answers: Sequence[LoadTestAnswer],
    copies: Mapping[str, str],
) -> str:
    """Return the Markdown of the card.

    Args:
        copies: folder of a copy beside the weights ("" is the top) -> its text.
        models: evaluated models of the lineage, the published one last.
        figures: file in the repository -> its caption.
        hashes: file in the repository -> its sha256.
    """
    lineage = release.lineage
    scores = [model.scores for model in models]
    config = redact(lineage.run.record.get("config") or {}, release.names)
    evaluations = [redact(stage.metrics or {}, release.names) for stage in lineage.evaluations]
    findings = (thinking_finding(scores[-1]), format_finding(scores[-1])) if scores else ()
    text = template("card.md.jinja").render(
        release=release,
        lineage=lineage,
        version=__version__,
        embedded=EMBEDDED_ON_THE_HUB,
        allowed=[check for check in checks if check.state == "allowed"],
        usage=_usage(release, copies),
        copies=list(copies.values()),
        answers=answers,
        accuracy=list(_accuracy_rows(scores)),
        tasks=task_names(scores),
        budgets=_budget_rows(scores),
        further_tables=list(further_tables(scores[-1], evaluations)) if scores else [],
        figures=figures,
        mode_findings=[finding for finding in findings if finding],
        stage_settings=[(stage, hyper_parameters(stage.record)) for stage in lineage.stages],
        new_tokens=[word for stage in lineage.stages for word in new_tokens(stage.record)],
        stage_findings=list(stage_findings(lineage, models, release.names)),
        weights=[item for item in hashes.items() if item[0].endswith((".safetensors", ".gguf"))],
        settings=json.dumps(config, indent=2, ensure_ascii=False),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # parts that are left out leave blank lines


def render_usage(usage: Usage) -> str:
    """Return the section with the code snippets alone."""
    text = template("usage.md.jinja").render(usage=usage)
    return re.sub(r"\n{3,}", "\n\n", text)


def quotable(questions: Sequence[str]) -> str:
    """Return the first question that fits a snippet in any shell; a plain one if none does."""
    fitting = (
        question
        for question in questions
        if len(question) <= _MAX_CHARACTERS and not set("\"'\\\n`${}") & set(question)
    )
    return next(fitting, _QUESTION)


def _usage(release: Release, copies: Mapping[str, str]) -> Usage:
    questions, _ = release.lineage.questions()
    base = release.adapter_base
    adapters = [stage.record["config"].get("lora") for stage in release.lineage.training]
    return Usage(
        repo_id=release.request.repo_id,
        contents=release.manifest.contents,
        base=(base.id if base else None) or "BASE",
        revision=(base.revision if base else None) or "main",
        rank=sum(largest_rank(lora) for lora in adapters if lora),
        whole_tensors=any(has_whole_tensors(lora) for lora in adapters if lora)
        or any(new_tokens(stage.record) for stage in release.lineage.training),
        question=quotable(questions),
        switch=release.request.switch or saved_switch(release.lineage.run.path),
        converts="" not in copies,
        subfolder=release.request.place,
        copies=tuple(filter(None, copies)),
    )


def _budget_rows(models: Sequence[ModelScores]) -> list[list[str]]:
    """Return (task, budget, accuracy, against none, closed, tokens) of the published model."""
    rows = budget_rows(budget_figures(models[-1:]))
    return [[task, *cells] for task, _, *cells in rows]


def _accuracy_rows(models: Sequence[ModelScores]) -> Iterator[tuple[str, ...]]:
    """Yield (task, model, n, think, no_think, gain), task by task."""
    for task in task_names(models):
        for model in models:
            if task not in model.tasks:
                continue
            think, no_think = model.score(task, "think"), model.score(task, "no_think")
            score = max(filter(None, (think, no_think)), key=lambda s: s.samples, default=None)
            cells = (score_text(think), score_text(no_think), gain_text(model.gain(task)))
            yield task, short_label(model.model), score.count if score else "-", *cells
