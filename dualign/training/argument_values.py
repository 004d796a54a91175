"""Values of training arguments that can't work on any machine, by name, before anything is imported.

`arguments` checks names and types. The names of further keys (of a scheduler, of accelerate) are read from the
installed source, as there.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from dualign.config import nearest
from dualign.training.source import class_fields, package_tree

Issue = tuple[str, str]
_Test = Callable[[Any], bool]


def _at_least(low: float) -> tuple[_Test, str]:
    return lambda value: value >= low, f"{low:g} or more"


_ABOVE_ZERO: tuple[_Test, str] = (lambda value: value > 0, "more than 0")
_SHARE: tuple[_Test, str] = (lambda value: 0 <= value < 1, "0 or more, below 1")
# Counts of steps may be a share of all steps.
_STEPS: tuple[_Test, str] = (
    lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
    "a whole number, or a share of all steps below 1",
)
_NUMBERS: Mapping[str, tuple[_Test, str]] = {
    "learning_rate": _ABOVE_ZERO,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _ABOVE_ZERO,
    "weight_decay": _at_least(0),
    "max_grad_norm": _at_least(0),
    "warmup_steps": _at_least(0),
    "neftune_noise_alpha": _at_least(0),
    "per_device_train_batch_size": _at_least(1),
    "per_device_eval_batch_size": _at_least(1),
    "gradient_accumulation_steps": _at_least(1),
    "eval_accumulation_steps": _at_least(1),
    "torch_empty_cache_steps": _at_least(1),
    "dataloader_num_workers": _at_least(0),
    "dataloader_prefetch_factor": _at_least(1),
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
}
_CHOICES: Mapping[str, Sequence[str]] = {
    "log_level": ("passive", "debug", "info", "warning", "error", "critical"),
    "log_level_replica": ("passive", "debug", "info", "warning", "error", "critical"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "pad_to_multiple_of": ("auto",),
    "debug": ("underflow_overflow", "tpu_metrics_debug"),
}
_CHECKPOINTING = (
    "use_reentrant",
    "selective",
    "preserve_rng_state",
    "determinism_check",
    "early_stop",
    "debug",
)
_WORKERS = (
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "dataloader_multiprocessing_context",
)
_PLATEAU = (
    "mode",
    "factor",
    "patience",
    "threshold",
    "threshold_mode",
    "cooldown",
    "min_lr",
    "eps",
)  # of torch's ReduceLROnPlateau
_FOLLOWS_VALIDATION = ("reduce_lr_on_plateau", "greedy")
# What get_scheduler passes by itself.
_OF_THE_TRAINER = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "self"}


def value_issues(train: Mapping[str, Any]) -> list[Issue]:
    """Return the problems of `train:` as (key, message)."""
    parts = (_numbers, _choices, _nested, _scheduler, _workers, _best_model, _length, _optimizer)
    return [(f"train.{name}", message) for part in parts for name, message in part(train)]


def _numbers(train: Mapping[str, Any]) -> Iterator[Issue]:
    for name, (holds, expected) in _NUMBERS.items():
        value = train.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not holds(value):
            if name == "save_steps" and value == 0:
                continue  # transformers saves at the end alone
            yield name, f"expected {expected}, found {value}"


def _choices(train: Mapping[str, Any]) -> Iterator[Issue]:
    for name, choices in _CHOICES.items():
        value = train.get(name)
        if isinstance(value, str) and value not in choices:
            yield name, f"unknown value {value!r}{nearest(value, choices)}"


def _nested(train: Mapping[str, Any]) -> Iterator[Issue]:
    known = {
        "gradient_checkpointing_kwargs": _CHECKPOINTING,
        "activation_checkpointing_kwargs": _CHECKPOINTING,
        "accelerator_config": class_fields(
            "transformers", "trainer_pt_utils.py", "AcceleratorConfig"
        ),
    }
    for name, keys in known.items():
        value = train.get(name)
        if isinstance(value, str):
            yield name, f"expected keys with values, found {value!r}"
        for key in value if isinstance(value, Mapping) else ():
            if key not in keys:
                yield f"{name}.{key}", f"unknown key{nearest(str(key), keys)}"


def _scheduler(train: Mapping[str, Any]) -> Iterator[Issue]:
    kind = train.get("lr_scheduler_type", "linear")
    if kind in _FOLLOWS_VALIDATION and train.get("eval_strategy", "no") == "no":
        message = "follows the validation loss: needs data.validation_rows and train.eval_strategy"
        yield "lr_scheduler_type", f"{kind} {message}"
    values = train.get("lr_scheduler_kwargs") or {}
    if not isinstance(values, Mapping):
        yield "lr_scheduler_kwargs", f"expected keys with values, found {values!r}"
        return
    keys = scheduler_keys().get(str(kind))
    if keys is None:
        return
    for key in values:
        if key not in keys:
            takes = f"{kind} takes {', '.join(keys) or 'none'}"
            yield f"lr_scheduler_kwargs.{key}", f"unknown key{nearest(str(key), keys)}; {takes}"
    if "min_lr_rate" in keys and not {"min_lr", "min_lr_rate"} & set(values):
        yield "lr_scheduler_kwargs", f"{kind} needs min_lr or min_lr_rate"
    if kind == "warmup_stable_decay" and "num_decay_steps" not in values:
        yield "lr_scheduler_kwargs", f"{kind} needs num_decay_steps"


@cache
def scheduler_keys() -> Mapping[str, tuple[str, ...]]:
    """Return the name of a scheduler -> the keys that `lr_scheduler_kwargs` may have."""
    tree = package_tree("transformers", "optimization.py")
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("TYPE_TO_SCHED")
    )
    assert isinstance(table, ast.Dict)
    members = _members("transformers", "trainer_utils.py", "SchedulerType")
    keys: dict[str, tuple[str, ...]] = {}
    for member, function in zip(table.keys, table.values, strict=True):
        names = _parameters(functions[ast.unparse(function)])
        keys[members[ast.unparse(member).rpartition(".")[2]]] = names  # type: ignore[arg-type]
    keys["reduce_lr_on_plateau"] = _PLATEAU
    greedy = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "GreedyLR")
    start = next(n for n in greedy.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    keys["greedy"] = _parameters(start)
    return keys


def _parameters(function: ast.FunctionDef) -> tuple[str, ...]:
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    return tuple(name for name in names if name not in _OF_THE_TRAINER)


def _members(package: str, file: str, enum: str) -> dict[str, str]:
    node = next(
        node
        for node in package_tree(package, file).body
        if isinstance(node, ast.ClassDef) and node.name == enum
    )
    return {
        ast.unparse(item.targets[0]): item.value.value
        for item in node.body
        if isinstance(item, ast.Assign)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    }


def _workers(train: Mapping[str, Any]) -> Iterator[Issue]:
    if not train.get("dataloader_num_workers"):
        for name in _WORKERS:
            if train.get(name):
                yield name, "needs train.dataloader_num_workers of 1 or more"


def _best_model(train: Mapping[str, Any]) -> Iterator[Issue]:
    saving = train.get("save_strategy", "steps")
    validating = train.get("eval_strategy", "no")
    metric = train.get("metric_for_best_model")
    if saving == "best" and (validating == "no" or metric is None):
        yield "save_strategy", "best needs train.metric_for_best_model and train.eval_strategy"
    if isinstance(metric, str) and not _is_metric(metric):
        yield (
            "metric_for_best_model",
            f"no such figure of validation: {metric!r}; there are loss, loss/think, loss/no_think, "
            "loss/source/NAME, and of pairs rewards/accuracies, rewards/margins, also by mode",
        )
    if not train.get("load_best_model_at_end") or validating == "no" or saving == "best":
        return
    if saving != validating:
        yield (
            "load_best_model_at_end",
            f"needs the same save_strategy and eval_strategy, found {saving} and {validating}",
        )
    elif saving == "steps" and "eval_steps" in train:
        every, checked = train.get("save_steps", 500), train["eval_steps"]
        whole = all(isinstance(number, (int, float)) and number >= 1 for number in (every, checked))
        if whole and every % checked:
            yield "save_steps", f"a multiple of eval_steps is needed, found {every} and {checked}"


def _is_metric(name: str) -> bool:
    name = name.removeprefix("eval_")
    return (
        name == "loss"
        or name.startswith(("loss/", "rewards/", "logps/", "logits/", "entropy"))
        or (name in ("mean_token_accuracy", "num_tokens", "runtime"))
    )


def _length(train: Mapping[str, Any]) -> Iterator[Issue]:
    epochs, steps = train.get("num_train_epochs", 3), train.get("max_steps", -1)
    numbers = isinstance(epochs, (int, float)) and isinstance(steps, (int, float))
    if numbers and epochs <= 0 and steps <= 0:
        yield "num_train_epochs", f"expected more than 0, or max_steps above 0, found {epochs}"


def _optimizer(train: Mapping[str, Any]) -> Iterator[Issue]:
    arguments = train.get("optim_args")
    if isinstance(arguments, str) and arguments:
        parts = arguments.replace(" ", "").split(",")
        if not all(re.fullmatch(r"\w+=[^=]+", part) for part in parts):
            yield "optim_args", f"expected name=value, with commas between, found {arguments!r}"
