"""The pairs stage: `dualign pairs RECIPE` samples a checkpoint in both modes into pairs.jsonl.

Right against wrong: a verifier sorts the samples of a prompt. Strong against weak, as for SmolLM3:
with `rejected_model`, one model writes the chosen answers and the other the rejected ones.
"""

import gc
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.data.conversation import Mode
from dualign.errors import DataError, EvaluationError
from dualign.evaluation.requests import prompts_differ, render_question, task_switch
from dualign.generation.answers import (
    Answer,
    AnswerRequest,
    Prompt,
    Responder,
    ask,
    sample_request,
)
from dualign.generation.config import Endpoint, model_label
from dualign.generation.responders import open_responder
from dualign.generation.samples import SampleFile
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import Reply
from dualign.models import prompts
from dualign.preference.config import PairsStage
from dualign.rundir import Outcome, summarize_outcomes
from dualign.switch import Switch
from dualign.tasks import Problem, Task, judge, load_questions

_Samples = list[tuple["_SampleRequest", Reply | str]]
"""Each sample of a model: a reply, or why there is none (malformed, failed)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _SampleRequest:
    """A sample to draw of a problem in a mode."""

    task: Task
    problem: Problem
    mode: Mode
    answer: AnswerRequest


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
    samples, asked, reasons = [], {}, Counter[str]()
    for model in models:
        of_model, record = _sample(stage, model, problems, file, seed)
        samples.append(of_model)
        if record is not None:
            name = model_label(model)  # one model may be asked in two ways
            asked[f"{name} (rejected)" if name in asked else name] = record
    pairs, rows = _pair_up(stage, samples, seed, reasons)
    if not pairs:
        raise DataError(
            f"stage {stage.name}: no pair came of {rows['in']} prompts: {rows['dropped']}"
        )
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (work / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    metrics: dict[str, Any] = {"pairs": len(pairs), "samples": sum(map(len, samples))}
    metrics |= {"endpoints": asked} if asked else {}
    metrics |= {"reasons": dict(reasons.most_common())} if reasons else {}
    return Outcome(metrics=metrics, rows=rows)


def _sample(
    stage: PairsStage,
    model: str | Endpoint,
    problems: Sequence[tuple[Task, Sequence[Problem]]],
    file: SampleFile,
    seed: int,
) -> tuple[_Samples, dict[str, Any] | None]:
    """Return every sample of a model, and of an endpoint what it was asked."""
    name = Path(model).name if isinstance(model, str) else model_label(model)
    responder = open_responder(
        model,
        backend="transformers",
        dtype=stage.dtype,
        batch_tokens=stage.batch_tokens,
        label=f"sampling {name}",
    )
    identity = f"{responder.identity}:{seed}"
    count = stage.samples if stage.rejected_model is None else 1
    requests = [
        _request(stage, task, problem, prompt, n, identity)
        for task, problems_of_task in problems
        for switch in [_switch(responder, task, stage)]
        for mode in stage.modes
        for problem in problems_of_task
        for prompt in [render_question(responder, problem, mode, switch)]
        for n in range(count)
    ]
    answers = ask(responder, [request.answer for request in requests], file)
    record = responder.record()
    del responder
    gc.collect()  # the second model needs the room
    return [(r, _well_formed(a)) for r, a in zip(requests, answers, strict=True)], record


def _switch(responder: Responder, task: Task, stage: PairsStage) -> Switch | None:
    """Return what switches the modes; refuse a model that is asked in one way for both."""
    switch = task_switch(responder, task, stage.switch)
    if len(stage.modes) > 1 and not prompts_differ(responder, switch):
        named = task.switch if task.switch is not None else stage.switch
        raise EvaluationError(
            f"stage {stage.name}, {responder.model}: {prompts.one_prompt(named)}. "
            "For a model without modes, sample one: modes: [no_think]"
        )
    return switch


def _request(
    stage: PairsStage, task: Task, problem: Problem, prompt: Prompt, number: int, name: str
) -> _SampleRequest:
    """Return the request of a sample; `number` counts those of a prompt from a model."""
    sampling = Sampling(
        max_new_tokens=stage.max_new_tokens, temperature=stage.temperature, top_p=stage.top_p
    )
    answer = sample_request(prompt, sampling, number, name)
    return _SampleRequest(task=task, problem=problem, mode=prompt.mode, answer=answer)


def _well_formed(answer: Answer | None) -> Reply | str:
    """Return the reply of a sample, or why it can't be used."""
    if answer is None:
        return "failed"
    return "malformed" if answer.fault else answer.reply


def _pair_up(
    stage: PairsStage, samples: Sequence[_Samples], seed: int, reasons: Counter[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return pairs and ROWS of run.json: a row is a prompt in a mode, kept if it has a pair.

    `reasons` counts why samples are wrong.
    """
    prompts: dict[
        tuple[str, Mode, str], tuple[_SampleRequest, list[Reply | str], list[Reply | str]]
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
            better, worse, reason = _right_and_wrong(request, first, reasons)
        counts.setdefault(key[:2], Counter())[reason or "kept"] += 1
        pairs += _match(stage, request, better, worse, random.Random(f"{seed}:{key}"))
    return pairs, summarize_outcomes(counts)


def _right_and_wrong(
    request: _SampleRequest, samples: Sequence[Reply | str], reasons: Counter[str]
) -> tuple[list[Reply], list[Reply], str | None]:
    replies = _replies(samples)
    verdicts = [judge(request.task, request.problem, reply.answer) for reply in replies]
    reasons.update(verdict.reason for verdict in verdicts if verdict.reason)
    right = [reply for reply, verdict in zip(replies, verdicts, strict=True) if verdict]
    wrong = [reply for reply, verdict in zip(replies, verdicts, strict=True) if not verdict]
    if right and wrong:
        return right, wrong, None
    return right, wrong, "all_right" if right else "all_wrong" if wrong else _fault(samples)


def _strong_and_weak(
    strong: Sequence[Reply | str], weak: Sequence[Reply | str]
) -> tuple[list[Reply], list[Reply], str | None]:
    better, worse = _replies(strong), _replies(weak)
    if not (better and worse):
        return [], [], _fault([*strong, *weak])
    return ([], [], "identical") if better == worse else (better, worse, None)


def _replies(samples: Sequence[Reply | str]) -> list[Reply]:
    return [sample for sample in samples if isinstance(sample, Reply)]


def _fault(samples: Sequence[Reply | str]) -> str:
    """Return why samples gave no pair: `failed` if an endpoint left one of them out."""
    return "failed" if "failed" in samples else "malformed"


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
