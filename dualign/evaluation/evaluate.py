"""Evaluate models on tasks in think and no_think mode, and measure whether the switch works.

Prompts are rendered by the checkpoint's own chat template, so any chat model can be evaluated.
Launch: `dualign eval MODEL --task FILE --out DIR`, or a stage of kind `eval` in a recipe.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dualign.data.config import SourceConfig
from dualign.data.conversation import MODES, Mode
from dualign.data.rows.source_files import combined_sha256, fingerprint_files
from dualign.evaluation.config import EvalConfig, EvalStage, pairs_name
from dualign.evaluation.metrics import Sample, gain, with_gain
from dualign.evaluation.pairs import Margins, margin_change, pair_margins, summarize_margins
from dualign.evaluation.requests import EvalRequest, TaskSet, build_requests
from dualign.evaluation.samples import AnswerRecord, SampleFile
from dualign.evaluation.scores import Change, short_label
from dualign.evaluation.table import markdown_table, terminal_pairs, terminal_table
from dualign.generation.generate import GenerateBatches, generate_batches
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import TraceMarks, split, trace_marks
from dualign.models.loading import EvalModel, open_model
from dualign.models.source import resolve_model
from dualign.rundir import Outcome, write_json
from dualign.tasks import Task, judge, load_questions
from dualign.terminal import wide_console


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """A model's samples in the order of tasks, modes and rows, and its margins on pairs."""

    model: str
    mode_switch: bool
    samples: tuple[Sample, ...]
    pairs: Mapping[str, Margins]


def run(stage: EvalStage, work: Path, *, seed: int) -> Outcome:
    """Evaluate every model on every task; write metrics.json, samples.jsonl and table.md."""
    work.mkdir(parents=True, exist_ok=True)
    problems = load_questions(stage.tasks, limit=stage.rows, seed=seed)
    tasks = [task for task, _ in problems]
    file = SampleFile(work / "samples.jsonl")
    results = []
    result = open_model(stage.models[-1], dtype=stage.dtype)
    # Refuses what can't be asked before the models before it are.
    build_requests(result.tokenizer, problems, stage, name=result.identity, seed=seed)
    for model in stage.models:
        subject = open_model(model, dtype=stage.dtype)
        evaluated = evaluate_model(
            subject,
            problems,
            stage,
            file,
            seed=seed,
            pairs=stage.pairs,
            baseline=model != stage.models[-1],
        )
        results.append(evaluated)
        del subject
        gc.collect()  # a model and its cache form reference cycles; the next model needs the room
    file.finish(sample for result in results for sample in result.samples)
    metrics = _metrics(results, tasks)
    write_json(work / "metrics.json", metrics)
    (work / "table.md").write_text(markdown_table(metrics), encoding="utf-8")
    console = wide_console()
    console.print(terminal_table(metrics))
    if stage.pairs:
        console.print(terminal_pairs(metrics))
    sources = [data_source(task.rows, len(rows)) for task, rows in problems]
    for pairs in stage.pairs:
        margins = results[-1].pairs[pairs_name(pairs)]
        path = pairs if isinstance(pairs, str) else pairs.path
        sources.append(data_source(path, sum(map(len, margins.values()))))
    return Outcome(metrics=metrics, data=tuple(sources))


def evaluate_model(
    subject: EvalModel,
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
    name = f"{subject.identity}:{config.backend}:{config.dtype}"
    requests = build_requests(
        subject.tokenizer, tasks, config, name=name, seed=seed, baseline=baseline
    )
    _answer_all(subject, requests.items, config, file)
    marks = trace_marks(subject.tokenizer)
    samples = tuple(
        _sample(subject, request, file.answered[request.key], marks) for request in requests.items
    )
    return EvalResult(
        model=subject.model,
        mode_switch=requests.mode_switch,
        samples=samples,
        pairs=pair_margins(subject, pairs, config.switch, any_modes=not requests.mode_switch),
    )


def _answer_all(
    subject: EvalModel, requests: Sequence[EvalRequest], config: EvalConfig, file: SampleFile
) -> None:
    """Generate the missing answers. The weights are loaded only if there are any."""
    missing = {request.key: request for request in requests if request.key not in file.answered}
    if not missing:
        return
    generate = _backend(subject, config)
    for limit in sorted({request.limit for request in missing.values()}):
        group = [request for request in missing.values() if request.limit == limit]
        sampling = Sampling(
            max_new_tokens=limit, temperature=config.temperature, top_p=config.top_p
        )
        prompts, seeds = [request.prompt for request in group], [request.seed for request in group]
        for batch in generate(prompts, sampling, seeds):
            file.append(
                AnswerRecord(
                    key=group[i].key, generated=generation.text, finished=generation.finished
                )
                for i, generation in batch.items()
            )


def _backend(subject: EvalModel, config: EvalConfig) -> GenerateBatches:
    label = short_label(subject.model)
    if config.backend == "vllm":
        from dualign.generation.vllm import vllm_batches

        start = resolve_model(subject.model)
        return vllm_batches(
            start.base,
            str(start.adapter) if start.adapter else None,
            subject.tokenizer,
            dtype=config.dtype,
            label=label,
        )
    return partial(
        generate_batches,
        subject.weights(),
        subject.tokenizer,
        batch_tokens=config.batch_tokens,
        label=label,
    )


def _sample(
    subject: EvalModel, request: EvalRequest, answer: AnswerRecord, marks: TraceMarks
) -> dict[str, Any]:
    """Judge an answer: the line of samples.jsonl."""
    tokenizer = subject.tokenizer
    reply = split(
        request.prompt,
        answer.generated,
        mode=request.mode,
        finished=answer.finished,
        marks=marks,
    )
    problem = request.problem
    verdict = judge(request.task, problem, reply.answer)
    return {
        **problem.extra,
        "model": subject.model,
        "task": request.task.name,
        "mode": request.mode,
        "id": problem.id,
        "prompt": problem.question,
        "thinking": reply.thinking,
        "answer": reply.answer,
        "expected": problem.expected,
        "correct": verdict.right,
        "reason": verdict.reason,
        "closed": reply.closed,
        "leaked": reply.leaked,
        "empty_think": reply.empty,
        "cut_in_think": reply.cut_in_think,
        "finished": answer.finished,
        "think_tokens": _count(tokenizer, reply.thinking or ""),
        "answer_tokens": _count(tokenizer, reply.answer),
        "rendered": request.prompt,
        "generated": answer.generated,
        "key": answer.key,
    }


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0


def _metrics(results: Sequence[EvalResult], tasks: Sequence[Task]) -> dict[str, Any]:
    """Build metrics.json: the last model at the top, all under `all`, and changes between them."""
    by_task = [_by_task(result, tasks) for result in results]
    entries = [
        {
            "model": result.model,
            "mode_switch": result.mode_switch,
            "tasks": with_gain(samples),
            "pairs": {
                name: {mode: summarize_margins(margins[mode]) for mode in MODES}
                for name, margins in result.pairs.items()
            },
        }
        for result, samples in zip(results, by_task, strict=True)
    ]
    steps = list(pairwise(zip(results, by_task, strict=True)))
    changes = [
        _change(before, after, gain(old[task.name][mode], new[task.name][mode]))
        | {"task": task.name, "mode": mode}
        for (before, old), (after, new) in steps
        for task in tasks
        for mode in MODES
    ]
    pair_changes = [
        _change(before, after, rise) | {"pairs": name, "mode": mode}
        for (before, _), (after, _) in steps
        for name, margins in before.pairs.items()
        for mode in MODES
        if (rise := margin_change(margins[mode], after.pairs[name][mode]))
    ]
    return {**entries[-1], "all": entries, "changes": changes, "pair_changes": pair_changes}


def _change(before: EvalResult, after: EvalResult, change: Change) -> dict[str, Any]:
    return {
        "model": after.model,
        "against": before.model,
        "value": change.value,
        "ci": [change.low, change.high],
    }


def _by_task(result: EvalResult, tasks: Sequence[Task]) -> dict[str, dict[Mode, list[Sample]]]:
    samples: dict[str, dict[Mode, list[Sample]]] = {
        task.name: {mode: [] for mode in MODES} for task in tasks
    }
    for sample in result.samples:
        samples[sample["task"]][sample["mode"]].append(sample)
    return samples


def data_source(file: str, rows: int) -> dict[str, Any]:
    """Return the entry of run.json's `data` for an evaluated file."""
    return {"source": file, "sha256": combined_sha256(fingerprint_files(file)), "rows": rows}
