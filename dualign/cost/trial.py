"""A few real steps of a training stage on this machine, remembered: the speed that `plan` reckons with.

`dualign plan --measure` makes them. They are kept in dualign's cache under everything that the time of
a token depends on: device, model, step, kind of stage, versions. A stage that was measured once is
planned from that, in every recipe, until one of these changes.
"""

import gc
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dualign.cost.model_shape import ModelShape
from dualign.cost.remembered import key_of, remember, remembered
from dualign.cost.row_tokens import scored_tokens
from dualign.cost.stage_shape import training_shape
from dualign.data.prepare import PairData, Prepared, RatedData, SFTData
from dualign.errors import ConfigError
from dualign.models.device import device_name
from dualign.stages import stage_kind
from dualign.training.precision import training_device

if TYPE_CHECKING:
    from transformers import Trainer

_FILE = "speeds.json"
_WARM_UP, _STEPS = 1, 3
_SECONDS = 30.0  # no step begins after so many
_PACKAGES = ("dualign", "torch", "transformers", "trl", "peft")
# A trial neither saves nor validates, and its schedule doesn't matter.
_LEFT_OUT = ("lr_scheduler_type", "lr_scheduler_kwargs", "metric_for_best_model", "run_name")
_SETTINGS: Mapping[str, Any] = {
    "max_steps": _WARM_UP + _STEPS,
    "gradient_accumulation_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def remembered_speed(config: Any, shape: ModelShape) -> float | None:
    """Return the tokens per second of a step like this one; None if none was measured here."""
    speed = remembered(_FILE, _key(config, shape)).get("tokens_per_second")
    return float(speed) if speed else None


def measure_speed(
    config: Any,
    shape: ModelShape,
    data: Prepared | None,
    *,
    seed: int,
    before: Callable[["Trainer"], object] = lambda trainer: None,
) -> float:
    """Train a few steps, and remember the tokens per second; returns them.

    Args:
        config: the stage's, with paths in place of references.
        data: its rows; None if they aren't known: random tokens of `max_tokens` then.
        before: called with the trainer, whose model is still the start model.

    Raises:
        ConfigError: a stage that can't be tried here.
        DualignError: the stage refuses, as it would in a run.
    """
    from dualign.models.source import resolve_model
    from dualign.training.rows import request_rows

    kind = stage_kind(config.kind)
    if config.launch or not kind.build:
        raise ConfigError("only a stage of one process is measured")
    source = resolve_model(config.model, revision=config.revision)
    if not Path(source.base).is_dir():
        raise ConfigError(f"{source.base} isn't here")
    stage = _trial_stage(config)
    request = request_rows(stage, source, seed=seed)
    count = (_WARM_UP + _STEPS) * training_shape(stage, longest=1).micro_batch
    rows = _rows(data, count) if data else _random_rows(stage, shape.vocab, count)
    with TemporaryDirectory() as work:
        trainer = kind.builder(stage, source, rows, request.tokenizer, Path(work), seed=seed)
        before(trainer)
        seconds = _seconds_per_step(trainer)
        steps = len(trainer.get_train_dataloader())
        del trainer
        gc.collect()  # a trainer is part of cycles, and holds its model
    speed: float = _tokens(stage, rows) / steps / seconds
    remember(_FILE, _key(config, shape), {"tokens_per_second": speed, "stage": config.name})
    return speed


def _trial_stage(config: Any) -> Any:
    train = {name: value for name, value in config.train.items() if name not in _LEFT_OUT}
    steps = {"train": {**train, **_SETTINGS}, "verify_reload": False, "pause_at_step": None}
    return replace(config, **steps)


def _seconds_per_step(trainer: "Trainer") -> float:
    """Train, and return the mean time of a step."""
    import torch
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from dualign.training.callbacks import LogLines

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            if args.device.type != "cpu":
                torch.accelerator.synchronize()
            times.append(perf_counter())
            if times[-1] - start > _SECONDS:
                control.should_training_stop = True

    trainer.remove_callback(LogLines)
    trainer.add_callback(Clock())
    start = perf_counter()
    trainer.train()
    return _mean_step(start, times)


def _mean_step(start: float, times: Sequence[float]) -> float:
    """Return the mean of the steps that ended at `times`, the first aside; it counts if it was so slow
    that no other began.
    """
    if len(times) <= _WARM_UP:
        return times[0] - start
    return (times[-1] - times[_WARM_UP - 1]) / (len(times) - _WARM_UP)


def _rows(data: Prepared, count: int) -> Prepared:
    """Return rows of the stage, drawn so that their lengths are those of all."""
    numbers = list(range(len(data.train)))
    random.Random(0).shuffle(numbers)
    repeated = [numbers[i % len(numbers)] for i in range(count)]
    return replace(data, train=data.train.select(repeated), validation=None)


def _random_rows(config: Any, vocab: int, count: int) -> Prepared:
    """Return rows of random tokens that are as long as rows may be."""
    from datasets import Dataset

    draw, length = random.Random(0), config.data.max_tokens

    def ids(size: int) -> list[int]:
        return [draw.randrange(vocab) for _ in range(size)]

    common: dict[str, Any] = {"validation": None, "groups": (("think", "random"),)}
    common |= {"rows": {}, "sources": ()}
    half = length // 2
    if config.row_type == "rated":
        answers = [
            {"prompt_ids": ids(half), "answer_ids": ids(length - half)}
            | {"desirable": number % 2 == 0, "group": 0}
            for number in range(count)
        ]
        return RatedData(train=Dataset.from_list(answers), **common)
    if config.row_type == "pair":
        pairs = [
            {"prompt_ids": ids(half), "chosen_ids": ids(length - half)}
            | {"rejected_ids": ids(length - half), "group": 0}
            for _ in range(count)
        ]
        return PairData(train=Dataset.from_list(pairs), **common)
    rows = [ids(length) for _ in range(count)]
    packed = [
        {"input_ids": row, "labels": row, "seq_lengths": [length], "doc_groups": [0]}
        for row in rows
    ]
    return SFTData(train=Dataset.from_list(packed), fill=1.0, **common)


def _tokens(config: Any, data: Prepared) -> int:
    """Count tokens as the plan does: those of a pair with its prompt twice."""
    if isinstance(data, SFTData):
        return sum(map(len, data.train["input_ids"]))
    return round(scored_tokens(data, config.answers_per_row)[2] * len(data.train))


def _key(config: Any, shape: ModelShape) -> str:
    step = replace(training_shape(config, longest=config.data.max_tokens), gradient_accumulation=1)
    facts = {
        "device": device_name(on_cpu=training_device(config).kind == "cpu"),
        "model": asdict(shape),
        "step": asdict(step),
        "kind": config.kind,
        "packing": config.data.packing,
        "loss": str(config.train.get("loss_type")),
        "compiled": bool(config.train.get("torch_compile")),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    return key_of(facts)
