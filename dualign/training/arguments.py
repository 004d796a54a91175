"""The `train:` part of a recipe: every TrainingArguments field of the installed TRL.

Names and types are read from the source of the installed transformers and trl with `ast`: importing
them would import torch, and a recipe is refused before that.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dualign.config import nearest
from dualign.training.source import annotated, classes

# Set by dualign; the text says what the user sets instead.
_OWNED: Mapping[str, str] = {
    "output_dir": "set output_dir of the recipe",
    "seed": "set seed of the stage or recipe",
    "data_seed": "set seed of the stage or recipe",
    "max_length": "set data.max_tokens",
    "packing": "set data.packing",
    "packing_strategy": "set data.packing",
    "eval_packing": "set data.packing",
    "padding_free": "set data.packing",
    "truncation_mode": "set data.too_long",
    "assistant_only_loss": "set data.supervise",
    "completion_only_loss": "set data.supervise",
    "chat_template_path": "set template",
    "eos_token": "it comes from the template",
    "pad_token": "it comes from the tokenizer",
    "dataset_text_field": "set data.sources",
    "dataset_kwargs": "set data.sources",
    "shuffle_dataset": "set data.sources; rows are always shuffled by the seed",
    "remove_unused_columns": "dualign builds the columns",
    "model_init_kwargs": "set dtype, attn_implementation or quantization",
    "trust_remote_code": "dualign runs no code from a checkpoint",
    "resume_from_checkpoint": "dualign resumes by itself",
    "precompute_ref_log_probs": "set reference: cached",
    "sync_ref_model": "the reference is fixed in dualign",
    "use_liger_kernel": "TRL's fused head already keeps logits out of memory",
    "push_to_hub": "publishing is a step of its own",
    "deepspeed": "set launch, or start with `accelerate launch --config_file ...`",
    "fsdp": "set launch, or start with `accelerate launch --config_file ...`",
    "parallelism_config": "tensor and context parallelism aren't supported",
    "do_train": "a stage trains",
    "do_predict": "an eval stage asks the model",
    "do_eval": "set data.validation_rows and train.eval_strategy",
}
_RENAMED: Mapping[str, str] = {
    "warmup_ratio": "warmup_steps; a value below 1 is a share of all steps",
    "evaluation_strategy": "eval_strategy",
    "tokenizer": "template",
    "group_by_length": "train_sampling_strategy",
}
# What a preference stage reads itself: of trainers that TRL may still move, by TRL's names.
_OWN = dict.fromkeys(
    ("simpo_gamma", "cpo_alpha", "desirable_weight", "undesirable_weight"), "float"
)
_BASE = (("transformers", "training_args.py"), ("trl", "trainer/base_config.py"))
_ENUMS = (("transformers", "trainer_utils.py"), ("transformers", "training_args.py"))


@dataclass(frozen=True, slots=True)
class _ArgumentCheck:
    """A check of a `train:` mapping; `config` is TRL's file with the fields that it adds."""

    config: str
    own: Mapping[str, str] = field(default_factory=dict)
    """names and types that aren't fields of TRL's class"""

    def __call__(self, value: Any) -> list[tuple[str, str]]:
        if not isinstance(value, Mapping):
            return []
        types = {**_argument_types(self.config), **self.own}
        return [
            (name, text)
            for name, argument in value.items()
            if (text := _problem(name, argument, types))
        ]

    def names(self) -> frozenset[str]:
        """Return the names that `train:` takes, whatever their values."""
        types = {**_argument_types(self.config), **self.own}
        return frozenset(
            name for name in types if name not in _OWNED and not name.startswith("hub_")
        )


SFT_ARGUMENTS = _ArgumentCheck("trainer/sft_config.py")
DPO_ARGUMENTS = _ArgumentCheck("trainer/dpo_config.py", _OWN)


def of_trl(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return what TRL's class takes of a checked `train:`."""
    return {name: value for name, value in train.items() if name not in _OWN}


@cache
def _argument_types(config: str) -> Mapping[str, str]:
    """Return field name -> annotation in the source, for TrainingArguments and TRL's additions."""
    types: dict[str, str] = {}
    for package, file in (*_BASE, ("trl", config)):
        for node in classes(package, file):
            if node.name.endswith(("TrainingArguments", "Config")):
                types |= annotated(node)
    return {name: kind for name, kind in types.items() if not name.startswith("_")}


@cache
def _enum_values() -> Mapping[str, tuple[str, ...]]:
    """Return enum name -> values, for enums of text (schedulers, optimizers, strategies)."""
    return {
        node.name: tuple(
            item.value.value
            for item in node.body
            if isinstance(item, ast.Assign)
            and isinstance(item.value, ast.Constant)
            and isinstance(item.value.value, str)
        )
        for package, file in _ENUMS
        for node in classes(package, file)
        if any("Enum" in ast.unparse(base) for base in node.bases)
    }


def _problem(name: str, value: Any, types: Mapping[str, str]) -> str | None:
    if name in _OWNED:
        return f"is set by dualign: {_OWNED[name]}"
    if name.startswith("hub_"):
        return f"is set by dualign: {_OWNED['push_to_hub']}"
    if name in _RENAMED and name not in types:
        return f"unknown training argument (now {_RENAMED[name]})"
    if name not in types:
        return (
            f"unknown training argument{nearest(name, [key for key in types if key not in _OWNED])}"
        )
    kinds = set(re.findall(r"\w+", types[name]))
    choices = [value for kind in kinds for value in _enum_values().get(kind, ())]
    if isinstance(value, str) and choices:
        return None if value in choices else f"unknown value {value!r}{nearest(value, choices)}"
    if _fits(value, kinds):
        return None
    hint = (
        "; YAML reads no as false: write it in quotes" if value is False and "no" in choices else ""
    )
    return f"expected {types[name]}, found {value!r}{hint}"


def _fits(value: Any, kinds: set[str]) -> bool:
    names = {
        bool: {"bool"},
        int: {"int", "float"},
        float: {"float"},
        str: {"str"},
        dict: {"dict"},
        list: {"list"},
    }
    if value is None:
        return "None" in kinds
    return bool(names.get(type(value), set()) & kinds) or "Any" in kinds
