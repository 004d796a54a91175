"""A model in training on small tasks in both modes, against what it answered at the start."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualign.data.conversation import MODES
from dualign.data.request import DataRequest
from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalConfig
from dualign.evaluation.evaluate import evaluate_model, live_responder
from dualign.evaluation.metrics import gain, summarize
from dualign.evaluation.requests import TaskSet
from dualign.evaluation.sampled import Sample
from dualign.evaluation.scores import Change, change_text
from dualign.generation.answers import Responder, ask, require_all, sample_request
from dualign.generation.samples import SampleFile
from dualign.generation.sampling import Sampling
from dualign.models.loading import EvalModel
from dualign.retention.config import RetainBound, RetainConfig
from dualign.retention.texts import Text, answer_texts, held_out_texts, measured_texts
from dualign.switch import Switch
from dualign.tasks.table import load_questions

_SHOWN = ("accuracy", "accuracy_ci", "n", "correct", "leak_rate", "unfinished_rate")
# Figures of all tasks have these places in the log, so no task may.
_TAKEN = ("loss", "kl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurer:
    """Measures a live model; its tasks are read once."""

    questions: TaskSet
    prompts: tuple[str, ...]
    held_out: tuple[Text, ...]
    bound: frozenset[str]
    """the tasks that bounds are for"""
    config: EvalConfig
    tokenizer: PreTrainedTokenizerBase
    seed: int

    @classmethod
    def of(
        cls,
        retain: RetainConfig,
        request: DataRequest,
        switch: Switch | None,
    ) -> "Measurer":
        """Read the tasks and held-out rows of a stage.

        Raises:
            EvaluationError: a task that can't be asked or checked.
            DataError: a held-out row that can't be read.
        """
        seed = request.seed
        paths = [*retain.tasks, *retain.watch]
        questions = load_questions(paths, limit=retain.rows, seed=seed)
        for task, _ in questions:
            if task.name in _TAKEN:
                raise EvaluationError(
                    f"retain: a task is named {task.name!r}, as a figure of the log is: expected another name"
                )
        config = EvalConfig(
            tasks=tuple(paths),
            rows=retain.rows,
            max_new_tokens=retain.max_new_tokens,
            max_new_tokens_no_think=retain.max_new_tokens_no_think,
            batch_tokens=retain.batch_tokens,
            switch=switch,
        )
        bound = frozenset(task.name for task, _ in questions[: len(retain.tasks)])
        return cls(
            questions=questions,
            prompts=retain.prompts,
            held_out=tuple(held_out_texts(request, retain.held_out, retain.rows)),
            bound=bound,
            config=config,
            tokenizer=request.tokenizer,
            seed=seed,
        )

    def answers(self, model: PreTrainedModel, scratch: Path, *, label: str) -> list[Sample]:
        """Return the judged answers of a model, as an evaluation's samples.

        Args:
            scratch: a file that holds answers while they come; it is deleted.
        """
        if not (self.questions or self.prompts):
            return []
        subject = EvalModel(
            model=label, identity=label, tokenizer=self.tokenizer, weights=lambda: model
        )
        responder = live_responder(subject, self.config)
        scratch.unlink(missing_ok=True)  # of a measurement that was killed
        file = SampleFile(scratch)
        try:
            result = evaluate_model(
                responder, self.questions, self.config, file, seed=self.seed, baseline=True
            )
            shown = self._shown(responder, file)
        finally:
            scratch.unlink(missing_ok=True)
        return [*result.samples, *shown]

    def _shown(self, responder: Responder, file: SampleFile) -> list[Sample]:
        """Return the answers to `prompts` in both modes, as samples of no task."""
        switch = responder.switch_of(self.config.switch)
        requests = []
        for text in self.prompts:
            for mode in MODES:
                prompt = responder.prompt([{"role": "user", "content": text}], mode, switch)
                limit = self.config.max_new_tokens
                if mode == "no_think":
                    limit = self.config.max_new_tokens_no_think or limit
                sampling = Sampling(max_new_tokens=limit)
                requests.append(sample_request(prompt, sampling, 0, responder.identity))
        answers = require_all(ask(responder, requests, file), responder, str(file.path))
        return [
            {
                "task": "",
                "mode": answer.request.prompt.mode,
                "id": str(number // len(MODES)),
                "prompt": self.prompts[number // len(MODES)],
                "thinking": answer.reply.thinking,
                "answer": answer.reply.answer,
                "finished": answer.finished,
                "closed": answer.reply.closed,
                "leaked": answer.reply.leaked,
                "think_tokens": answer.think_tokens,
                "answer_tokens": answer.answer_tokens,
            }
            for number, answer in enumerate(answers)
        ]

    def texts(self, start: Sequence[Sample]) -> list[Text]:
        """Return the fixed texts of a stage: held-out rows, and the start's answers to the tasks."""
        of_tasks = [row for row in start if row["task"] in self.bound]
        return measured_texts([*self.held_out, *answer_texts(self.tokenizer, of_tasks)])


def task_figures(
    samples: Sequence[Sample], start: Sequence[Sample]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `{task: {mode: figures}}`, each with its paired change from the start's answers."""
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for task in dict.fromkeys(str(sample["task"]) for sample in samples if sample["task"]):
        figures[task] = {}
        for mode in MODES:
            now, then = (
                [sample for sample in group if (sample["task"], sample["mode"]) == (task, mode)]
                for group in (samples, start)
            )
            summary, change = summarize(now, mode), gain(then, now)
            figures[task][mode] = {
                **{key: summary[key] for key in _SHOWN},
                "think_tokens": summary["think_tokens"]["mean"],
                "change": change.value,
                "change_ci": [change.low, change.high],
            }
    return figures


def broken(
    figures: Mapping[str, Any], start: Mapping[str, Any], bound: RetainBound, tasks: Collection[str]
) -> Iterator[str]:
    """Yield in words each bound that a measurement breaks; of accuracies, those of `tasks`."""
    for name, most in (("loss", bound.loss), ("kl", bound.kl)):
        for mode, value in figures.get(name, {}).items() if most is not None else ():
            rise = value - start[name][mode]
            if not rise <= most:  # NaN too
                yield f"{name}, {mode}: {rise:+.3f} nats a token since the start, allowed {most:g}"
    for task, by_mode in figures["tasks"].items():
        for mode, cell in by_mode.items():
            change = Change.of(cell["change"], cell["change_ci"])
            if task not in tasks or bound.accuracy is None or not change.measurable:
                continue
            if change.value < bound.accuracy:
                least = f"{100 * bound.accuracy:+.1f}"
                yield f"{task}, {mode}: {change_text(change)} points since the start, allowed {least}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file; none if it isn't there."""
    if not path.is_file():
        return []
    # Not splitlines(): a model may write U+2028, which JSON leaves as it is.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a .jsonl file in place of the old one, at once."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    aside.replace(path)
