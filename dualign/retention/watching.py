"""The measurements of a training stage: when they are made, where they are kept, how they are told.

    WORK/retention.json      the figures of each measured step
    WORK/retention.jsonl     the answers, a line for each, with their step

A stage that was killed, or paused, keeps those up to its checkpoint; the start is measured once.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dualign.data.request import DataRequest
from dualign.errors import CheckpointError, excerpt
from dualign.evaluation.scores import Change, change_text, percent
from dualign.retention.config import RetainConfig
from dualign.retention.measuring import (
    Measurer,
    broken,
    read_lines,
    task_figures,
    write_lines,
)
from dualign.retention.texts import remember_start, text_figures
from dualign.retention.undisturbed import undisturbed
from dualign.rundir import CHECKPOINTS, write_json
from dualign.training.best import WITHIN
from dualign.training.config import TrainingStage

logger = logging.getLogger(__name__)
_RETENTION_JSON = "retention.json"
_SAMPLES = "retention.jsonl"
_Figures = dict[str, Any]


def watch(
    trainer: Trainer,
    stage: TrainingStage,
    request: DataRequest,
    work: Path,
) -> None:
    """Let a trainer measure what its stage retains.

    Raises:
        EvaluationError: a task that can't be asked or checked.
        DataError: a held-out row that can't be read.
    """
    if stage.retain is None:
        return
    measurer = Measurer.of(stage.retain, request, stage.switch)
    trainer.add_callback(_Watch(trainer, measurer, work, stage.retain))


def retention_metrics(work: Path) -> dict[str, Any]:
    """Return `{"retain": ...}` for run.json: the measurements of each step; nothing without any."""
    file = work / _RETENTION_JSON
    if not file.is_file():
        return {}
    return {"retain": json.loads(file.read_text(encoding="utf-8"))}


class _Watch(TrainerCallback):
    """Measures at the start, every so many steps, and at the end."""

    def __init__(
        self, trainer: Trainer, measurer: Measurer, work: Path, retain: RetainConfig
    ) -> None:
        self._trainer, self._measurer, self._work = trainer, measurer, work
        self._retain = retain
        self._figures: list[_Figures] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step
        if state.is_world_process_zero:
            self._figures = [entry for entry in _read(self._work) if entry["step"] <= step]
            if step and not self._figures:
                raise CheckpointError(
                    f"{self._work}: {_RETENTION_JSON} is gone, so what is measured from step {step} on can't be "
                    "compared with the start; delete that folder to train again"
                )
        if not step:
            self._measure(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, every = state.global_step, self._retain.every
        if step >= state.max_steps or (every and step % every == 0):
            self._measure(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure the step that is published, whose weights are loaded by now, if it isn't measured."""
        step = state.best_global_step if args.load_best_model_at_end else None
        if step and state.is_world_process_zero and not self._kept(step):
            self._new(state, step)

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        """Measure on rank 0 while the others wait, and log it on all."""
        logged: list[dict[str, float] | None] = [None]
        if state.is_world_process_zero:
            figures = self._kept(state.global_step) or self._new(state, state.global_step)
            logged = [dict(_logged(figures))]
        logs = broadcast_object_list(logged)[0]
        training, should_log = self._trainer.model.training, control.should_log
        self._trainer.model.eval()  # else TRL would log, and forget, what was summed of the steps
        self._trainer.log(logs)
        self._trainer.model.train(training)
        control.should_log = should_log  # what the step has to log is still to come

    def _kept(self, step: int) -> _Figures | None:
        return next((entry for entry in self._figures if entry["step"] == step), None)

    def _new(self, state: TrainerState, step: int) -> _Figures:
        started = time.monotonic()
        scratch = self._work / CHECKPOINTS / "retention-answers.jsonl"
        scratch.parent.mkdir(parents=True, exist_ok=True)
        steps = {entry["step"] for entry in self._figures}
        kept = [row for row in read_lines(self._work / _SAMPLES) if row["step"] in steps]
        with undisturbed(self._trainer) as model:
            answers = self._measurer.answers(model, scratch, label=f"step {step}")
            start = [row for row in kept if row["step"] == 0] or answers
            figures = {"step": step, "tasks": task_figures(answers, start)}
            figures |= self._of_texts(model, start, step)
        figures["seconds"] = round(time.monotonic() - started, 1)
        if self._retain.bound:
            first = self._figures[0] if self._figures else figures
            tasks = self._measurer.bound
            figures["broken"] = [*broken(figures, first, self._retain.bound, tasks)]
        self._figures = sorted([*self._figures, figures], key=lambda entry: entry["step"])
        write_lines(self._work / _SAMPLES, [*kept, *({"step": step, **row} for row in answers)])
        write_json(self._work / _RETENTION_JSON, {"measurements": self._figures})
        lines = [*_in_words(figures, state.max_steps), *_answers_in_words(answers)]
        self._say("\n".join(lines))
        return figures

    def _of_texts(
        self, model: PreTrainedModel, start: Sequence[Mapping[str, Any]], step: int
    ) -> dict[str, Any]:
        """Return loss and divergence on the fixed texts; at the start, what they are compared with is kept."""
        texts = self._measurer.texts(start)
        file = self._work / CHECKPOINTS / "retention-start.safetensors"
        if not texts:
            return {}
        if step == 0:
            remember_start(model, texts, file)
        elif not file.is_file():
            raise CheckpointError(f"{file} is gone; delete {self._work} to train again")
        return text_figures(model, texts, file)

    def _say(self, text: str) -> None:
        """Print above the bar, if there is one."""
        bars = (
            c for c in self._trainer.callback_handler.callbacks if isinstance(c, ProgressCallback)
        )
        bar = getattr(next(bars, None), "training_bar", None)
        if bar is None:
            logger.info(text)
        else:
            bar.write(text)
            bar.set_postfix_str(_for_the_bar(self._figures[-1]))


def _read(work: Path) -> list[_Figures]:
    figures: list[_Figures] = retention_metrics(work).get("retain", {}).get("measurements", [])
    return figures


def _logged(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of what the log and the trackers get: `eval_retain/TASK/MODE`, the accuracy."""
    for task, by_mode in figures["tasks"].items():
        for mode, cell in by_mode.items():
            yield f"eval_retain/{task}/{mode}", cell["accuracy"]
    for name in ("loss", "kl"):
        for mode, value in figures.get(name, {}).items():
            yield f"eval_retain/{name}/{mode}", value
    if "broken" in figures:
        yield WITHIN, float(not figures["broken"])


def _in_words(figures: Mapping[str, Any], steps: int) -> Iterator[str]:
    """Yield a line for each task: `step 50/200  retain sums: think 95.0 %, (-5.0 [-19.4, +10.3]) since the start; ...`."""
    for task, by_mode in figures["tasks"].items():
        parts = []
        for mode, cell in by_mode.items():
            change = Change.of(cell["change"], cell["change_ci"])
            since = f", {change_text(change)} since the start" if figures["step"] else ""
            parts.append(f"{mode} {percent(cell['accuracy'])} %{since}")
        yield f"step {figures['step']}/{steps}  retain {task}: {'; '.join(parts)}"
    parts = [
        f"{words}, {mode} {value:.3f}"
        for name, words in (("loss", "loss"), ("kl", "KL to the start"))
        for mode, value in figures.get(name, {}).items()
    ]
    if parts:
        yield f"step {figures['step']}/{steps}  retain, nats a token: {'; '.join(parts)}"
    for text in figures.get("broken", ()):
        yield f"step {figures['step']}/{steps}  retain: beyond the bound: {text}"


def _answers_in_words(answers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each answer to a fixed prompt."""
    for row in answers:
        if not row["task"]:
            thinking = (
                f"<think> {excerpt(row['thinking'], 120)} </think> " if row["thinking"] else ""
            )
            text = f"{thinking}{excerpt(row['answer'], 120)}"
            yield f"  {row['mode']}, {excerpt(row['prompt'], 60)} -> {text}"


def _for_the_bar(figures: Mapping[str, Any]) -> str:
    """Return the accuracies in percent, think before no_think: `sums 95/80, routes 70/72`."""
    parts = []
    for task, by_mode in figures["tasks"].items():
        shares = (percent(cell["accuracy"], 0) for cell in by_mode.values())
        parts.append(f"{task} {'/'.join(shares)}")
    return ", ".join(parts)
