"""The pairs stage: `dualign pairs RECIPE` samples a checkpoint in both modes and writes pairs.jsonl.

Right against wrong: a verifier sorts the samples of one prompt. Strong against weak, as SmolLM3 did: with
`rejected_model`, one model writes what is chosen and the other what is rejected.
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

from dualign.data.conversation import Mode
from dualign.errors import DataError
from dualign.evaluation.requests import render_question
from dualign.evaluation.samples import AnswerRecord, SampleFile
from dualign.generation.generate import generate_batches
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import Reply, split
from dualign.models.loading import identity, load_model
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.preference.config import PairsStage
from dualign.rundir import Outcome
from dualign.tasks import Problem, Task, load_problems, load_tasks
from dualign.verifiers import verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One sample to draw: `number` counts those of one problem and mode by one model."""

    task: Task
    problem: Problem
    mode: Mode
    prompt: str
    number: int
    key: str


def run(stage: PairsStage, work: Path, *, seed: int) -> Outcome:
    """Sample, judge, pair up; answers already in `work` aren't drawn again.

    Raises:
        DataError: not one pair came out.
    """
    asked = [
        (task, load_problems(task, limit=stage.rows, seed=seed)) for task in load_tasks(stage.tasks)
    ]
    file = SampleFile(work / "generations.jsonl")
    models = [stage.model] + ([stage.rejected_model] if stage.rejected_model else [])
    drawn = [_draw(stage, model, asked, file, seed) for model in models]
    pairs, rows = _pair_up(stage, drawn, seed)
    if not pairs:
        raise DataError(
            f"stage {stage.name}: no pair came of {rows['in']} prompts: {rows['dropped']}"
        )
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (work / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Outcome(metrics={"pairs": len(pairs), "samples": sum(map(len, drawn))}, rows=rows)


def _draw(
    stage: PairsStage,
    model: str,
    asked: Sequence[tuple[Task, Sequence[Problem]]],
    file: SampleFile,
    seed: int,
) -> list[tuple[Wanted, Reply | None]]:
    """Every sample of one model, taken apart; None where thinking or answer is malformed or was cut."""
    tokenizer = load_chat_tokenizer(model)
    name = identity(model)
    count = stage.samples if stage.rejected_model is None else 1
    wanted = [
        _wanted(
            stage,
            task,
            problem,
            mode,
            render_question(tokenizer, problem, mode),
            number,
            f"{name}:{seed}",
        )
        for task, problems in asked
        for mode in stage.modes
        for problem in problems
        for number in range(count)
    ]
    missing = [one for one in wanted if one.key not in file.answered]
    if missing:
        weights = load_model(model, dtype=stage.dtype)
        batches = generate_batches(
            weights,
            tokenizer,
            [one.prompt for one in missing],
            Sampling(
                max_new_tokens=stage.max_new_tokens,
                temperature=stage.temperature,
                top_p=stage.top_p,
            ),
            [int(one.key[:12], 16) for one in missing],
            batch_tokens=stage.batch_tokens,
            progress=f"sampling {Path(model).name}",
        )
        for batch in batches:
            file.append(
                AnswerRecord(key=missing[i].key, generated=made.text, finished=made.finished)
                for i, made in batch.items()
            )
        del weights
        gc.collect()  # the second model needs the room
    return [(one, _well_formed(one, file.answered[one.key])) for one in wanted]


def _wanted(
    stage: PairsStage, task: Task, problem: Problem, mode: Mode, prompt: str, number: int, name: str
) -> Wanted:
    content = [name, prompt, number, stage.max_new_tokens, stage.temperature, stage.top_p]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
    return Wanted(task=task, problem=problem, mode=mode, prompt=prompt, number=number, key=key)


def _well_formed(one: Wanted, made: AnswerRecord) -> Reply | None:
    parsed = split(one.prompt, made.generated, mode=one.mode, finished=made.finished)
    thought = parsed.closed and not parsed.empty if one.mode == "think" else parsed.thinking is None
    return parsed if made.finished and thought and parsed.answer and not parsed.leaked else None


def _pair_up(
    stage: PairsStage, drawn: Sequence[Sequence[tuple[Wanted, Reply | None]]], seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pairs, and ROWS of run.json: a row is a prompt in a mode, kept when a pair came of it."""
    prompts: dict[tuple[str, str, str], tuple[Wanted, list[Reply | None], list[Reply | None]]] = {}
    for one, parsed in drawn[0]:
        place = (one.task.name, one.mode, one.problem.id)
        prompts.setdefault(place, (one, [], []))[1].append(parsed)
    for one, parsed in drawn[1] if len(drawn) > 1 else ():
        prompts[one.task.name, one.mode, one.problem.id][2].append(parsed)
    pairs: list[dict[str, Any]] = []
    counts: dict[tuple[str, str], Counter[str]] = {}
    for key, (one, first, second) in prompts.items():
        if second:
            better, worse, reason = _strong_and_weak(first, second)
        else:
            better, worse, reason = _right_and_wrong(one, first)
        counts.setdefault(key[:2], Counter())[reason or "kept"] += 1
        pairs += _matched(stage, one, better, worse, random.Random(f"{seed}:{key}"))
    return pairs, _rows(counts)


def _right_and_wrong(
    one: Wanted, samples: Sequence[Reply | None]
) -> tuple[list[Reply], list[Reply], str | None]:
    whole = [parsed for parsed in samples if parsed is not None]
    right = [
        parsed for parsed in whole if verify(one.task.verifier, parsed.answer, one.problem.expected)
    ]
    wrong = [parsed for parsed in whole if parsed not in right]
    reason = (
        "malformed"
        if not whole
        else "all_wrong"
        if not right
        else "all_right"
        if not wrong
        else None
    )
    return right, wrong, reason


def _strong_and_weak(
    strong: Sequence[Reply | None], weak: Sequence[Reply | None]
) -> tuple[list[Reply], list[Reply], str | None]:
    better, worse = ([parsed for parsed in side if parsed is not None] for side in (strong, weak))
    reason = "malformed" if not (better and worse) else "identical" if better == worse else None
    return (better, worse, None) if reason is None else ([], [], reason)


def _matched(
    stage: PairsStage,
    one: Wanted,
    better: Sequence[Reply],
    worse: Sequence[Reply],
    draw: random.Random,
) -> list[dict[str, Any]]:
    """Distinct pairs, drawn by the seed, each sample used once while there are others."""
    better, worse = draw.sample(better, len(better)), draw.sample(worse, len(worse))
    count = min(stage.pairs_per_prompt, len(better), len(worse))
    return [
        {
            "prompt": [dict(turn) for turn in one.problem.messages],
            "chosen": [_message(better[i])],
            "rejected": [_message(worse[i])],
            "mode": one.mode,
            "task": one.task.name,
            "id": one.problem.id,
        }
        for i in range(count)
    ]


def _message(parsed: Reply) -> dict[str, str]:
    message = {"role": "assistant", "content": parsed.answer}
    return message if parsed.thinking is None else {**message, "reasoning_content": parsed.thinking}


def _rows(counts: Mapping[tuple[str, str], Counter[str]]) -> dict[str, Any]:
    by = []
    total: Counter[str] = Counter()
    for (task, mode), count in counts.items():
        total += count
        dropped = {reason: n for reason, n in count.items() if reason != "kept"}
        by.append(
            {
                "source": task,
                "mode": mode,
                "in": count.total(),
                "kept": count["kept"],
                "dropped": dropped,
            }
        )
    dropped = {reason: n for reason, n in total.items() if reason != "kept"}
    return {"in": total.total(), "kept": total["kept"], "dropped": dropped, "by": by}
