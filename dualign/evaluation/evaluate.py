"""Puts tasks to models in think and in no_think mode, and measures whether the switch works.

Prompts come from the checkpoint's own chat template, as its users get them, so any chat model can
be measured.
Launch: `dualign eval MODEL --task FILE --out DIR`, or a stage of kind `eval` in a recipe.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from dualign.data.conversation import MODES, Mode
from dualign.data.rows.source_files import combined_sha256, fingerprint_files
from dualign.evaluation.config import EvalSettings, EvalStage
from dualign.evaluation.metrics import Sample, gain, with_gain
from dualign.evaluation.pairs import Margins, margin_change, pair_margins, summarise_margins
from dualign.evaluation.requests import Asked, Request, build_requests
from dualign.evaluation.samples import Answered, SampleFile
from dualign.evaluation.scores import Change, short_label
from dualign.evaluation.table import markdown_table, terminal_pairs, terminal_table
from dualign.evaluation.verify import verify
from dualign.generation.generate import Generation, generate_batches
from dualign.generation.thinking import split
from dualign.models.inference import Subject, open_model
from dualign.models.source import resolve_model
from dualign.rundir import Outcome, write_json
from dualign.tasks import Task, load_problems, load_tasks

Answer = Callable[[Sequence[str], int, Sequence[int]], Iterator[dict[int, Generation]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """A model's samples, in the order of tasks, modes and rows."""

    model: str
    mode_switch: bool
    samples: tuple[Sample, ...]
    pairs: Mapping[str, Margins]


def run(stage: EvalStage, work: Path, *, seed: int) -> Outcome:
    """Every model on every task; writes metrics.json, samples.jsonl and table.md into `work`."""
    work.mkdir(parents=True, exist_ok=True)
    tasks = load_tasks(stage.tasks)
    asked = [(task, load_problems(task, limit=stage.rows, seed=seed)) for task in tasks]
    file = SampleFile(work / "samples.jsonl")
    evaluated = []
    for model in stage.models:
        subject = open_model(model, dtype=stage.dtype)
        evaluated.append(evaluate_model(subject, asked, stage, file, seed=seed, pairs=stage.pairs))
        del subject
        gc.collect()  # a model and its cache are in reference cycles; the next one needs the room
    file.finish(sample for model in evaluated for sample in model.samples)
    metrics = _metrics(evaluated, tasks)
    write_json(work / "metrics.json", metrics)
    (work / "table.md").write_text(markdown_table(metrics), encoding="utf-8")
    console = Console()
    # A pipe has no width; without one rich would break the table at 80 columns.
    console = console if console.is_terminal else Console(width=160)
    console.print(terminal_table(metrics))
    if stage.pairs:
        console.print(terminal_pairs(metrics))
    sources = [data_source(task.rows, len(problems)) for task, problems in asked]
    sources += [data_source(file, _pairs_in(evaluated[-1], file)) for file in stage.pairs]
    return Outcome(metrics=metrics, data=tuple(sources))


def evaluate_model(
    subject: Subject,
    asked: Asked,
    settings: EvalSettings,
    file: SampleFile,
    *,
    seed: int,
    pairs: Sequence[str] = (),
) -> Evaluated:
    """One model's samples; answers that `file` holds already aren't made again."""
    name = f"{subject.identity}:{settings.backend}:{settings.dtype}"
    requests = build_requests(subject.tokenizer, asked, settings, name=name, seed=seed)
    _answer_all(subject, requests.items, settings, file)
    samples = tuple(
        _sample(subject, request, file.answered[request.key]) for request in requests.items
    )
    return Evaluated(
        model=subject.model,
        mode_switch=requests.mode_switch,
        samples=samples,
        pairs=pair_margins(subject, pairs),
    )


def _answer_all(
    subject: Subject, requests: Sequence[Request], settings: EvalSettings, file: SampleFile
) -> None:
    """Make the answers that are missing. The weights are asked for only if there are any."""
    missing = {each.key: each for each in requests if each.key not in file.answered}
    if not missing:
        return
    answer = _backend(subject, settings)
    for limit in sorted({each.limit for each in missing.values()}):
        group = [each for each in missing.values() if each.limit == limit]
        batches = answer([each.prompt for each in group], limit, [each.seed for each in group])
        for batch in batches:
            file.append(
                Answered(key=group[i].key, generated=made.text, finished=made.finished)
                for i, made in batch.items()
            )


def _backend(subject: Subject, settings: EvalSettings) -> Answer:
    label = short_label(subject.model)
    if settings.backend == "vllm":
        from dualign.generation.vllm import vllm_answers

        start = resolve_model(subject.model)
        return vllm_answers(
            start.base,
            str(start.adapter) if start.adapter else None,
            subject.tokenizer,
            dtype=settings.dtype,
            temperature=settings.temperature,
            top_p=settings.top_p,
            label=label,
        )
    weights = subject.weights()

    def answer(
        prompts: Sequence[str], limit: int, seeds: Sequence[int]
    ) -> Iterator[dict[int, Generation]]:
        return generate_batches(
            weights,
            subject.tokenizer,
            prompts,
            max_new_tokens=limit,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=seeds,
            batch_tokens=settings.batch_tokens,
            progress=label,
        )

    return answer


def _sample(subject: Subject, request: Request, made: Answered) -> dict[str, Any]:
    tokenizer = subject.tokenizer
    parsed = split(request.prompt, made.generated, mode=request.mode, finished=made.finished)
    problem = request.problem
    return {
        **problem.extra,
        "model": subject.model,
        "task": request.task.name,
        "mode": request.mode,
        "id": problem.id,
        "prompt": problem.question,
        "thinking": parsed.thinking,
        "answer": parsed.answer,
        "expected": problem.expected,
        "correct": verify(request.task.verifier, parsed.answer, problem.expected),
        "closed": parsed.closed,
        "leaked": parsed.leaked,
        "empty_think": parsed.empty,
        "cut_in_think": parsed.cut_in_think,
        "finished": made.finished,
        "think_tokens": _count(tokenizer, parsed.thinking or ""),
        "answer_tokens": _count(tokenizer, parsed.answer),
        "rendered": request.prompt,
        "generated": made.generated,
        "key": made.key,
    }


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0


def _metrics(evaluated: Sequence[Evaluated], tasks: Sequence[Task]) -> dict[str, Any]:
    """The last model at the top, each under `all`; `changes`: its gain on the one before."""
    split_up = [_by_task(model, tasks) for model in evaluated]
    entries = [
        {
            "model": model.model,
            "mode_switch": model.mode_switch,
            "tasks": with_gain(by_task),
            "pairs": _summarised(model.pairs),
        }
        for model, by_task in zip(evaluated, split_up, strict=True)
    ]
    steps = list(pairwise(zip(evaluated, split_up, strict=True)))
    changes = [
        _change(before, after, gain(old[task.name][mode], new[task.name][mode]))
        | {"task": task.name, "mode": mode}
        for (before, old), (after, new) in steps
        for task in tasks
        for mode in MODES
    ]
    pair_changes = [
        _change(before, after, risen) | {"pairs": name, "mode": mode}
        for (before, _), (after, _) in steps
        for name, margins in before.pairs.items()
        for mode in MODES
        if (risen := margin_change(margins[mode], after.pairs[name][mode]))
    ]
    return {**entries[-1], "all": entries, "changes": changes, "pair_changes": pair_changes}


def _summarised(pairs: Mapping[str, Margins]) -> dict[str, Any]:
    return {
        name: {mode: summarise_margins(margins[mode]) for mode in MODES}
        for name, margins in pairs.items()
    }


def _change(before: Evaluated, after: Evaluated, found: Change) -> dict[str, Any]:
    return {
        "model": after.model,
        "against": before.model,
        "value": found.value,
        "ci": [found.low, found.high],
    }


def _by_task(model: Evaluated, tasks: Sequence[Task]) -> dict[str, dict[Mode, list[Sample]]]:
    found: dict[str, dict[Mode, list[Sample]]] = {
        task.name: {mode: [] for mode in MODES} for task in tasks
    }
    for sample in model.samples:
        found[sample["task"]][sample["mode"]].append(sample)
    return found


def data_source(file: str, rows: int) -> dict[str, Any]:
    """What run.json says of a file that was evaluated on."""
    return {"source": file, "sha256": combined_sha256(fingerprint_files(file)), "rows": rows}


def _pairs_in(model: Evaluated, file: str) -> int:
    return sum(map(len, model.pairs[Path(file).stem].values()))
