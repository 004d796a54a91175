"""Evaluate models on tasks in think and no_think mode, and measure whether the switch works.

Prompts are rendered by the checkpoint's own chat template, so any chat model can be evaluated.
Launch: `dualign eval MODEL --task FILE --out DIR`, or a stage of kind `eval` in a recipe.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dualign.data.config import SourceConfig
from dualign.data.conversation import MODES, Mode
from dualign.data.rows.source_files import combined_sha256, fingerprint_files
from dualign.errors import EvaluationError
from dualign.evaluation.budgets import budget_keys, is_own, whole_limits, with_budgets, with_curves
from dualign.evaluation.config import EvalConfig, EvalStage, pairs_name
from dualign.evaluation.following import Response, respond
from dualign.evaluation.languages import with_languages
from dualign.evaluation.lengths import with_lengths
from dualign.evaluation.metrics import clustered, compare, with_gain
from dualign.evaluation.pairs import Margins, margin_change, pair_margins, summarize_margins
from dualign.evaluation.requests import EvalRequest, TaskSet, build_requests
from dualign.evaluation.sampled import Sample, by_budget, has_value
from dualign.evaluation.scores import short_label
from dualign.evaluation.significance import with_adjusted
from dualign.evaluation.sizing import require_room, sized
from dualign.evaluation.table import markdown_table, terminal_tables
from dualign.generation.answers import Answer, Responder
from dualign.generation.config import Endpoint, model_label
from dualign.generation.responders import CheckpointResponder, open_responder
from dualign.generation.samples import SampleFile
from dualign.generation.thinking import TraceMarks, ends_in_trace
from dualign.models.loading import EvalModel
from dualign.rundir import Outcome, write_json
from dualign.tasks.base import HarnessTask, Task, expected_of, judge
from dualign.tasks.listed import ListedTask
from dualign.tasks.suites import suite_record
from dualign.tasks.table import load_questions, load_reference, place_of
from dualign.terminal import wide_console
from dualign.verifiers.base import Verdict, wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """A model's samples in the order of tasks, modes and rows, and its margins on pairs."""

    model: str
    mode_switch: bool
    samples: tuple[Sample, ...]
    pairs: Mapping[str, Margins]
    asked: Mapping[str, Any] | None = None
    """what an endpoint was asked: answers, failures by reason, tokens"""
    whole_limits: Mapping[str, int] = field(default_factory=dict)
    """of the tasks that were asked at budgets: the most tokens of a whole answer"""


def run(stage: EvalStage, work: Path, *, seed: int) -> Outcome:
    """Evaluate every model on every task; write metrics.json, samples.jsonl and table.md."""
    work.mkdir(parents=True, exist_ok=True)
    problems: TaskSet = load_questions(stage.tasks, limit=stage.rows, seed=seed)
    require_room(stage, problems)
    tasks = [task for task, _ in problems]
    file = SampleFile(work / "samples.jsonl")
    results = []
    # Refuses what can't be asked before the models before it are.
    result = _responder(stage.models[-1], stage)
    problems = sized(result, problems, stage.switch)
    build_requests(result, problems, stage, name=result.identity, seed=seed)
    for model in stage.models:
        responder = _responder(model, stage)
        evaluated = evaluate_model(
            responder,
            problems,
            stage,
            file,
            seed=seed,
            pairs=stage.pairs,
            baseline=model != stage.models[-1],
        )
        results.append(replace(evaluated, samples=with_languages(evaluated.samples)))
        del responder
        gc.collect()  # a model and its cache form reference cycles; the next model needs the room
    file.finish(sample for result in results for sample in result.samples)
    metrics = with_lengths(_metrics(results, tasks, stage), tasks, stage)
    if stage.suite is not None:
        metrics["suite"] = _suite(stage, tasks)
    write_json(work / "metrics.json", metrics)
    (work / "table.md").write_text(markdown_table(metrics), encoding="utf-8")
    console = wide_console()
    for part in terminal_tables(metrics):
        console.print(part)
    sources = [task_source(task, len(rows)) for task, rows in problems]
    for pairs in stage.pairs:
        margins = results[-1].pairs[pairs_name(pairs)]
        path = pairs if isinstance(pairs, str) else pairs.path
        sources.append(_data_source(path, sum(map(len, margins.values()))))
    return Outcome(metrics=metrics, data=tuple(sources))


def _suite(stage: EvalStage, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the stage's suite for metrics.json."""
    names = {
        key: [task.name for task in load_reference(reference)]
        for reference in stage.tasks
        for key in (reference, place_of(reference)[0].removesuffix("@"))
    }
    left_out = {task.name: task.left_out for task in tasks if isinstance(task, ListedTask)}
    return suite_record(str(stage.suite), names, left_out)


def _responder(model: str | Endpoint, config: EvalConfig) -> Responder:
    return open_responder(
        model,
        backend=config.backend,
        dtype=config.dtype,
        batch_tokens=config.batch_tokens,
        label=short_label(model_label(model)),
    )


def live_responder(subject: EvalModel, config: EvalConfig) -> Responder:
    """Return the responder of a model in memory."""
    return CheckpointResponder(
        subject,
        backend=config.backend,
        dtype=config.dtype,
        batch_tokens=config.batch_tokens,
        label=short_label(subject.model),
    )


def evaluate_model(
    responder: Responder,
    tasks: TaskSet,
    config: EvalConfig,
    file: SampleFile,
    *,
    seed: int,
    pairs: Sequence[str | SourceConfig] = (),
    baseline: bool = False,
) -> EvalResult:
    """Evaluate one model; answers that `file` holds already aren't generated again. A `baseline` may
    have no modes.
    """
    name = f"{responder.identity}:{config.backend}:{config.dtype}"
    tasks = sized(responder, tasks, config.switch)
    requests = build_requests(responder, tasks, config, name=name, seed=seed, baseline=baseline)
    items = requests.items
    if isinstance(config, EvalStage):
        items = with_budgets(items, config)
    responses = respond(responder, items, file, name=name)
    margins: Mapping[str, Margins] = {}
    if isinstance(responder, CheckpointResponder):
        one_way = not requests.mode_switch
        margins = pair_margins(responder.subject, pairs, config.switch, any_modes=one_way)
    samples = tuple(
        _sample(request, response, responder.marks)
        for request, response in zip(items, responses, strict=True)
        if is_own(request, response)
    )
    if not isinstance(config, EvalStage):
        _require_values(samples)
    return EvalResult(
        model=responder.model,
        mode_switch=requests.mode_switch,
        samples=samples,
        pairs=margins,
        asked=responder.record(),
        whole_limits=whole_limits(items),
    )


def _require_values(samples: Sequence[Sample]) -> None:
    """Refuse a task that can't say which model is better by a share that is right."""
    with_values = {sample["task"] for sample in samples if has_value(sample)}
    for sample in samples:
        if sample["task"] not in with_values:
            raise EvaluationError(
                f"task {sample['task']}: it has no metric from 0 to 1 (found "
                f"{', '.join(sample['scores'])}), so it can't rank models or bound a loss; evaluate it "
                "in an eval stage"
            )


# Keys of a line that say what its figures are; a row's own fields of these names are renamed.
_TAKEN = frozenset(
    {"score", "scores", "sample", "budget", "closed_by_budget", "vote", "usage", "more"}
    | {"token_ids", "likelihoods", "trace_language", "answer_language"}
)


def _sample(request: EvalRequest, response: Response, marks: TraceMarks) -> dict[str, Any]:
    """Judge a response: the line of samples.jsonl."""
    answer, problem = response.answer, request.problem
    reply = answer.reply
    verdict = _verdict(request, response, marks)
    sample = {
        **{f"row_{key}" if key in _TAKEN else key: item for key, item in problem.extra.items()},
        "model": answer.model,
        "task": request.task.name,
        "mode": request.mode,
        "id": problem.id,
        "prompt": problem.question,
        "thinking": reply.thinking,
        "answer": _likeliest(request, response) if response.likelihoods else reply.answer,
        "expected": problem.expected,
        "correct": verdict.right,
        "reason": verdict.reason,
        "closed": reply.closed,
        "leaked": reply.leaked,
        "empty_think": reply.empty,
        "cut_in_think": reply.cut_in_think,
        "finished": answer.finished,
        "think_tokens": answer.think_tokens,
        "answer_tokens": answer.answer_tokens,
        **_optional(request, response, verdict),
        "rendered": answer.request.prompt.text,
        "generated": answer.generated,
        "key": answer.request.key,
    }
    optional = {
        "scores": dict(verdict.scores),
        "more": [record.line() for record in response.more],
        "usage": answer.usage and dict(answer.usage),
    }
    sample |= budget_keys(request, response)
    return sample | {key: value for key, value in optional.items() if value not in (None, {}, [])}


def _verdict(request: EvalRequest, response: Response, marks: TraceMarks) -> Verdict:
    """Judge a response. An answer whose trace was cut is wrong, whatever a verifier would say of the
    empty text that is left.
    """
    task, problem = request.task, request.problem
    answers = [response.answer, *response.repeats]
    cut = not response.likelihoods and all(_is_cut(answer, marks) for answer in answers)
    if not isinstance(task, HarnessTask):
        return wrong("trace cut") if cut else judge(task, problem, answers[0].reply.answer)
    if response.likelihoods:
        return task.judge_responses(problem, [[pair] for pair in response.likelihoods])
    return task.judge_responses(problem, [response.texts], cut=cut)


def _is_cut(answer: Answer, marks: TraceMarks) -> bool:
    prompt = answer.request.prompt.text
    return not answer.finished and ends_in_trace(prompt, answer.generated, marks)


def _likeliest(request: EvalRequest, response: Response) -> str:
    """Return the text with the highest log-probability."""
    pairs = zip(response.likelihoods, request.problem.choices, strict=True)
    return max(pairs, key=lambda pair: pair[0][0])[1].text.strip()


def _optional(request: EvalRequest, response: Response, verdict: Verdict) -> dict[str, Any]:
    """Return the keys of a line that is graded, or is one of several answers to its problem."""
    keys: dict[str, Any] = {}
    task, text = request.task, response.answer.reply.answer
    if verdict.score is not None:
        keys["score"] = verdict.score
    if request.sample is not None:
        keys["sample"] = request.sample
        if response.likelihoods:
            keys["vote"] = _likeliest(request, response)
        elif task.check.can_vote:
            expected = expected_of(task, request.problem)
            keys["vote"] = task.check.vote(text, expected) if text else None
    return keys


def _metrics(
    results: Sequence[EvalResult], tasks: Sequence[Task], stage: EvalStage
) -> dict[str, Any]:
    """Build metrics.json: the last model at the top, all under `all`, and changes between them."""
    by_task = [_by_task(result, tasks) for result in results]
    entries: list[dict[str, Any]] = [
        {
            "model": result.model,
            "mode_switch": result.mode_switch,
            "tasks": _with_harness(
                with_curves(
                    with_gain(samples),
                    result.samples,
                    result.whole_limits,
                    stage,
                ),
                samples,
                tasks,
            ),
            "pairs": {
                name: {mode: summarize_margins(margins[mode]) for mode in MODES}
                for name, margins in result.pairs.items()
            },
        }
        for result, samples in zip(results, by_task, strict=True)
    ]
    steps = list(pairwise(zip(results, by_task, strict=True)))
    changes = [
        {"model": after.model, "against": before.model, "task": task.name, "mode": mode}
        | compare(old[task.name][mode], new[task.name][mode])
        for (before, old), (after, new) in steps
        for task in tasks
        for mode in MODES
        if entries[-1]["tasks"][task.name][mode]["accuracy"] is not None
    ]
    pair_changes = [
        {
            "model": after.model,
            "against": before.model,
            "pairs": name,
            "mode": mode,
            "value": rise.value,
            "ci": [rise.low, rise.high],
        }
        for (before, _), (after, _) in steps
        for name, margins in before.pairs.items()
        for mode in MODES
        if (rise := margin_change(margins[mode], after.pairs[name][mode]))
    ]
    metrics = {
        **entries[-1],
        "all": entries,
        "changes": with_adjusted(changes),
        "pair_changes": pair_changes,
    }
    asked = {result.model: result.asked for result in results if result.asked is not None}
    return {**metrics, "endpoints": asked} if asked else metrics


# What a task has none of that has metrics, but none that is a share of what can be right.
_SHARES = frozenset({"accuracy", "accuracy_ci", "gain", "gain_ci", "problems_needed"})


def _with_harness(
    metrics: dict[str, dict[str, Any]],
    samples: Mapping[str, Mapping[Mode, Sequence[Sample]]],
    tasks: Sequence[Task],
) -> dict[str, dict[str, Any]]:
    """Return the metrics of all tasks, with those of a harness's own where a task has them."""
    for task in tasks:
        if not isinstance(task, HarnessTask):
            continue
        for mode in MODES:
            cell, figures = metrics[task.name][mode], task.metrics(samples[task.name][mode])
            if "samples" in cell:
                figures = clustered(figures, cell.get("metrics", {}))
            cell["metrics"] = figures
            if not any(map(has_value, samples[task.name][mode])):
                metrics[task.name][mode] = {
                    key: None if key in _SHARES else value
                    for key, value in cell.items()
                    if not key.startswith("budget")
                }
    return metrics


def _by_task(result: EvalResult, tasks: Sequence[Task]) -> dict[str, dict[Mode, list[Sample]]]:
    samples: dict[str, dict[Mode, list[Sample]]] = {
        task.name: {mode: [] for mode in MODES} for task in tasks
    }
    for sample in by_budget(result.samples)[None]:
        samples[sample["task"]][sample["mode"]].append(sample)
    return samples


def task_source(task: Task, rows: int) -> dict[str, Any]:
    """Return the entry of run.json's `data` for a task."""
    if task.digest is None:
        return _data_source(task.rows, rows)
    origin = task.harness() if isinstance(task, HarnessTask) else {}
    if isinstance(task, ListedTask) and task.dataset:
        origin = {"dataset": dict(task.dataset)}
    return {"source": task.rows, "sha256": task.digest, "rows": rows, **origin}


def _data_source(file: str, rows: int) -> dict[str, Any]:
    """Return the entry of run.json's `data` for an evaluated file."""
    return {"source": file, "sha256": combined_sha256(fingerprint_files(file)), "rows": rows}
