"""The pairs stage: `dualign pairs RECIPE` samples a checkpoint in both modes into pairs.jsonl.

Right against wrong: a verifier sorts the samples of a prompt. Strong against weak, as for SmolLM3:
with `rejected_model`, one model writes the chosen answers and the other the rejected ones.
"""

import gc
import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dualign.data.conversation import Mode
from dualign.errors import DataError, EvaluationError
from dualign.evaluation.requests import prompts_differ, render_question, task_switch
from dualign.evaluation.samples import AnswerRecord, SampleFile
from dualign.generation.generate import generate_batches
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import Reply, TraceMarks, split, trace_marks
from dualign.models import prompts
from dualign.models.loading import identity, load_model
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.preference.config import PairsStage
from dualign.rundir import Outcome
from dualign.switch import Switch
from dualign.tasks import Problem, Task, judge, load_questions


@dataclass(frozen=True, kw_only=True, slots=True)
class _SampleRequest:
    """A sample to draw; `number` counts the samples of a problem in a mode from a model."""

    task: Task
    problem: Problem
    mode: Mode
    prompt: str
    number: int
    key: str


def run(stage: PairsStage, work: Path, *, seed: int) -> Outcome:
    """Sample, judge, pair up; answers already in `work` aren't sampled again.

    Raises:
        DataError: there is no pair.
    """
    problems = load_questions(
        stage.tasks, limit=stage.rows, seed=seed, checked=stage.rejected_model is None
    )
    file = SampleFile(work / "generations.jsonl")
    models = [stage.model] + ([stage.rejected_model] if stage.rejected_model else [])
    samples = [_sample(stage, model, problems, file, seed) for model in models]
    pairs, rows = _pair_up(stage, samples, seed)
    if not pairs:
        raise DataError(
            f"stage {stage.name}: no pair came of {rows['in']} prompts: {rows['dropped']}"
        )
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (work / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Outcome(metrics={"pairs": len(pairs), "samples": sum(map(len, samples))}, rows=rows)


def _sample(
    stage: PairsStage,
    model: str,
    problems: Sequence[tuple[Task, Sequence[Problem]]],
    file: SampleFile,
    seed: int,
) -> list[tuple[_SampleRequest, Reply | None]]:
    """Return every sample of a model; None if thinking or answer is malformed or was cut."""
    tokenizer = load_chat_tokenizer(model)
    name = f"{identity(model)}:{seed}"
    count = stage.samples if stage.rejected_model is None else 1
    requests = [
        _request(
            stage, task, problem, mode, render_question(tokenizer, problem, mode, switch), n, name
        )
        for task, problems_of_task in problems
        for switch in [_switch(tokenizer, task, stage)]
        for mode in stage.modes
        for problem in problems_of_task
        for n in range(count)
    ]
    missing = [request for request in requests if request.key not in file.answered]
    if missing:
        weights = load_model(model, dtype=stage.dtype)
        batches = generate_batches(
            weights,
            tokenizer,
            [request.prompt for request in missing],
            Sampling(
                max_new_tokens=stage.max_new_tokens,
                temperature=stage.temperature,
                top_p=stage.top_p,
            ),
            [int(request.key[:12], 16) for request in missing],
            batch_tokens=stage.batch_tokens,
            label=f"sampling {Path(model).name}",
        )
        for batch in batches:
            file.append(
                AnswerRecord(
                    key=missing[i].key, generated=generation.text, finished=generation.finished
                )
                for i, generation in batch.items()
            )
        del weights
        gc.collect()  # the second model needs the room
    marks = trace_marks(tokenizer)
    return [
        (request, _well_formed(request, file.answered[request.key], marks)) for request in requests
    ]


def _switch(tokenizer: PreTrainedTokenizerBase, task: Task, stage: PairsStage) -> Switch | None:
    """Return what switches the modes; refuse a model that is asked in one way for both."""
    switch = task_switch(tokenizer, task, stage.switch)
    if len(stage.modes) > 1 and not prompts_differ(tokenizer, switch):
        named = task.switch if task.switch is not None else stage.switch
        raise EvaluationError(
            f"stage {stage.name}, {tokenizer.name_or_path}: {prompts.one_prompt(named)}. "
            "For a model without modes, sample one: modes: [no_think]"
        )
    return switch


def _request(
    stage: PairsStage, task: Task, problem: Problem, mode: Mode, prompt: str, number: int, name: str
) -> _SampleRequest:
    content = [name, prompt, number, stage.max_new_tokens, stage.temperature, stage.top_p]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
    return _SampleRequest(
        task=task, problem=problem, mode=mode, prompt=prompt, number=number, key=key
    )


def _well_formed(request: _SampleRequest, answer: AnswerRecord, marks: TraceMarks) -> Reply | None:
    reply = split(
        request.prompt,
        answer.generated,
        mode=request.mode,
        finished=answer.finished,
        marks=marks,
    )
    if request.mode == "think":
        follows_mode = reply.closed and not reply.empty
    else:
        follows_mode = reply.thinking is None
    valid = answer.finished and follows_mode and reply.answer and not reply.leaked
    return reply if valid else None


def _pair_up(
    stage: PairsStage, samples: Sequence[Sequence[tuple[_SampleRequest, Reply | None]]], seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return pairs and ROWS of run.json: a row is a prompt in a mode, kept if it has a pair."""
    prompts: dict[
        tuple[str, Mode, str], tuple[_SampleRequest, list[Reply | None], list[Reply | None]]
    ] = {}
    for request, reply in samples[0]:
        key = (request.task.name, request.mode, request.problem.id)
        prompts.setdefault(key, (request, [], []))[1].append(reply)
    for request, reply in samples[1] if len(samples) > 1 else ():
        prompts[request.task.name, request.mode, request.problem.id][2].append(reply)
    pairs: list[dict[str, Any]] = []
    counts: dict[tuple[str, str], Counter[str]] = {}
    for key, (request, first, second) in prompts.items():
        if second:
            better, worse, reason = _strong_and_weak(first, second)
        else:
            better, worse, reason = _right_and_wrong(request, first)
        counts.setdefault(key[:2], Counter())[reason or "kept"] += 1
        pairs += _match(stage, request, better, worse, random.Random(f"{seed}:{key}"))
    return pairs, _rows(counts)


def _right_and_wrong(
    request: _SampleRequest, samples: Sequence[Reply | None]
) -> tuple[list[Reply], list[Reply], str | None]:
    replies = [reply for reply in samples if reply is not None]
    right = [reply for reply in replies if judge(request.task, request.problem, reply.answer)]
    wrong = [reply for reply in replies if reply not in right]
    if right and wrong:
        return right, wrong, None
    return right, wrong, "all_right" if right else "all_wrong" if wrong else "malformed"


def _strong_and_weak(
    strong: Sequence[Reply | None], weak: Sequence[Reply | None]
) -> tuple[list[Reply], list[Reply], str | None]:
    better, worse = ([reply for reply in side if reply is not None] for side in (strong, weak))
    reason = "malformed" if not (better and worse) else "identical" if better == worse else None
    return (better, worse, None) if reason is None else ([], [], reason)


def _match(
    stage: PairsStage,
    request: _SampleRequest,
    better: Sequence[Reply],
    worse: Sequence[Reply],
    rng: random.Random,
) -> list[dict[str, Any]]:
    """Draw pairs in which no sample comes twice."""
    better, worse = rng.sample(better, len(better)), rng.sample(worse, len(worse))
    count = min(stage.pairs_per_prompt, len(better), len(worse))
    return [
        {
            "prompt": [dict(turn) for turn in request.problem.messages],
            "chosen": [_message(better[i])],
            "rejected": [_message(worse[i])],
            "mode": request.mode,
            "task": request.task.name,
            "id": request.problem.id,
        }
        for i in range(count)
    ]


def _message(reply: Reply) -> dict[str, str]:
    message = {"role": "assistant", "content": reply.answer}
    return message if reply.thinking is None else {**message, "reasoning_content": reply.thinking}


def _rows(counts: Mapping[tuple[str, str], Counter[str]]) -> dict[str, Any]:
    by, total = [], Counter[str]()
    for (task, mode), count in counts.items():
        total += count
        by.append({"source": task, "mode": mode, **_row_counts(count)})
    return {**_row_counts(total), "by": by}


def _row_counts(count: Counter[str]) -> dict[str, Any]:
    dropped = {reason: n for reason, n in count.items() if reason != "kept"}
    return {"in": count.total(), "kept": count["kept"], "dropped": dropped}
