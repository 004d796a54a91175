"""Which step a stage publishes, and when it stops early: by a figure of its log, within bounds.

All is read off the log, which checkpoints hold: a stage that was killed chooses as it would have.
transformers then loads the checkpoint (`load_best_model_at_end`) before the stage is saved.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import SaveStrategy

from dualign.errors import TrainingError
from dualign.training.config import TrainingStage, lower_is_better, reads_metric

logger = logging.getLogger(__name__)
WITHIN = "eval_retain/within"  # of the log: 1 where no bound of `retain` is broken, 0 where one is


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What decides; with bounds and no metric it is the last step within them."""

    metric: str | None
    """a name of the log, `eval_` included"""
    lower: bool = False
    """less of it is better"""
    patience: int | None = None
    """measurements without a better one until the stage stops"""
    bounded: bool = False
    """only steps within the bounds of `retain` count"""
    stops: bool = False
    """the stage stops at the first step that breaks one"""

    def best(self, log: Sequence[Mapping[str, Any]]) -> tuple[int, float] | None:
        """Return the best step and its figure; None before there is one. Of equals it is the first.

        A figure that is no number is that of no step.
        """
        best: tuple[int, float] | None = None
        for step, figure, within in self._steps(log):
            if not within or not isfinite(figure):
                continue
            if best is None or (figure < best[1] if self.lower else figure > best[1]):
                best = step, figure
        return best

    def stop(self, log: Sequence[Mapping[str, Any]]) -> str:
        """Return why the stage stops after the last step of a log; "" if it goes on."""
        steps = [*self._steps(log)]
        if self.stops and (broken := [step for step, _, within in steps if not within]):
            return f"a bound of retain is broken at step {broken[0]}"
        best = self.best(log)
        if self.patience is None or best is None:
            return ""
        worse = sum(step > best[0] for step, *_ in steps)
        if worse < self.patience:
            return ""
        return f"{worse} measurements of {self.metric} since step {best[0]}, and none is better"

    def _steps(self, log: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, float, bool]]:
        """Yield each measured step with its figure, and whether it is within the bounds."""
        merged: dict[int, dict[str, Any]] = {}
        for entry in log:
            merged.setdefault(int(entry["step"]), {}).update(entry)
        for step, entry in sorted(merged.items()):
            name = self.metric or WITHIN
            if step and name in entry and (not self.bounded or WITHIN in entry):
                within = not self.bounded or bool(entry[WITHIN])
                yield step, float(entry[self.metric] if self.metric else step), within


def choose_best(trainer: Trainer, stage: TrainingStage) -> None:
    """Let the trainer keep and load the step that the stage's keys ask for, if they ask for one."""
    choice, arguments = _choice(trainer.args, stage), trainer.args
    if choice is None:
        return
    arguments.load_best_model_at_end = True
    # transformers would choose beside us, by this metric alone, and delete the checkpoint that we keep.
    if not reads_metric(arguments.lr_scheduler_type):
        arguments.metric_for_best_model = None
    if arguments.save_strategy == SaveStrategy.BEST:
        arguments.save_strategy = SaveStrategy.NO  # a step that is the best is saved in any case
    trainer.add_callback(_KeepBest(choice))


def _published_step(trainer: Trainer) -> int:
    """Return the step of the weights that a trainer has after training."""
    state = trainer.state
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        return int(state.best_global_step)
    return int(state.global_step)


def choice_metrics(trainer: Trainer) -> dict[str, Any]:
    """Return for run.json which step is published, by which figure, and why the stage stopped."""
    if not trainer.args.load_best_model_at_end:
        return {}
    callbacks = trainer.callback_handler.callbacks
    keeper = next(c for c in callbacks if isinstance(c, _KeepBest))
    log = trainer.state.log_history
    metrics: dict[str, Any] = {"published_step": _published_step(trainer)}
    best = keeper.choice.best(log)
    if keeper.choice.metric and best:
        metrics["best"] = {"metric": keeper.choice.metric, "value": best[1]}
    stopped = keeper.choice.stop(log)
    return {**metrics, "stopped": stopped} if stopped else metrics


def _choice(arguments: TrainingArguments, stage: TrainingStage) -> Choice | None:
    early, retain = stage.early_stopping, stage.retain
    bounded = retain is not None and retain.bound is not None
    stops = bounded and retain is not None and retain.on_bound == "stop"
    if arguments.load_best_model_at_end:  # of `train:`
        metric = arguments.metric_for_best_model
        name = metric if metric.startswith("eval_") else f"eval_{metric}"
        lower = not arguments.greater_is_better
        return Choice(metric=name, lower=lower, bounded=bounded, stops=stops)
    if early is None and not bounded:
        return None
    return Choice(
        metric=f"eval_{early.metric}" if early else None,
        lower=lower_is_better(early.metric) if early else False,
        patience=early.patience if early else None,
        bounded=bounded,
        stops=stops,
    )


class _KeepBest(TrainerCallback):
    """Saves a step when it is the best so far, and stops when the choice says so."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Choose among the steps of the checkpoint; one at which the stage stopped stays the last."""
        if state.global_step:
            self._remember(args, state)
            control.should_training_stop = bool(self.choice.stop(state.log_history))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        self._require_metric(logs or {})
        if (self.choice.metric or WITHIN) not in (logs or {}) or not state.global_step:
            return
        best = self.choice.best(state.log_history)
        if best is not None and best[0] == state.global_step:
            control.should_save = True
            self._remember(args, state)
        if reason := self.choice.stop(state.log_history):
            control.should_training_stop = control.should_save = True
            if state.is_world_process_zero:
                logger.warning("step %d: training stops: %s", state.global_step, reason)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._remember(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        best = self.choice.best(state.log_history)
        stopped = self.choice.stop(state.log_history)
        if state.global_step < state.max_steps and not stopped:
            return  # paused
        if best is None:
            reason = (
                stopped
                or f"no measured step is {'within the bounds' if self.choice.bounded else 'finite'}"
            )
            raise TrainingError(
                f"{reason}, and no step before it was measured within the bounds: nothing was published; "
                "the checkpoints stay. Try a lower train.learning_rate, rows of what the model could do "
                "before among data.sources, a smaller retain.every, or wider bounds"
            )
        folder = Path(args.output_dir) / f"checkpoint-{best[0]}"
        if Path(state.best_model_checkpoint or "") != folder:
            raise TrainingError(
                f"{folder} is gone, which has the weights of the step to publish; delete {folder.parent.parent} to "
                "train again"
            )
        if state.is_world_process_zero:
            logger.info("publishes step %d of %d", best[0], state.global_step)

    def _require_metric(self, logs: Mapping[str, float]) -> None:
        """Refuse a figure that its measurement doesn't have, at the first one."""
        metric = self.choice.metric
        kind = "eval_retain/" if metric and metric.startswith("eval_retain/") else "eval_loss"
        if metric is None or metric in logs or not any(name.startswith(kind) for name in logs):
            return
        known = sorted(name.removeprefix("eval_") for name in logs if name.startswith("eval_"))
        raise TrainingError(
            f"the metric that chooses the step, {metric.removeprefix('eval_')}, isn't measured here; there are: "
            f"{', '.join(known)}; set early_stopping.metric or train.metric_for_best_model"
        )

    def _remember(self, args: TrainingArguments, state: TrainerState) -> None:
        """Tell transformers which step to keep, and to load at the end."""
        best = self.choice.best(state.log_history)
        if best is None:
            return
        state.best_global_step, state.best_metric = best
        folder = Path(args.output_dir) / f"checkpoint-{best[0]}"
        if folder.is_dir():
            state.best_model_checkpoint = str(folder)
