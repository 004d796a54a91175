"""The `train:` part of a recipe: every TrainingArguments field of the installed TRL, by its own name.

The names and types are read from the source of the installed transformers and trl with `ast`, because importing
them would import torch, and a recipe has to be refused before that.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualign.config import nearest

# Set by dualign; the text says where the user sets it instead.
OWNED: Mapping[str, str] = {
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
    "do_train": "a stage trains",
    "do_eval": "set data.validation_rows and train.eval_strategy",
}
PREFERENCE_LOSSES = ("apo_zero", "apo_down", "sigmoid", "ipo")
RENAMED: Mapping[str, str] = {
    "warmup_ratio": "warmup_steps; a value below 1 is a share of all steps",
    "evaluation_strategy": "eval_strategy",
    "tokenizer": "template",
    "group_by_length": "train_sampling_strategy",
}
_BASE = (("transformers", "training_args.py"), ("trl", "trainer/base_config.py"))
_ENUMS = (("transformers", "trainer_utils.py"), ("transformers", "training_args.py"))


@dataclass(frozen=True, slots=True)
class TrainingArgumentsOf:
    """A check for a `train:` mapping. `config` is the TRL file that adds fields to TrainingArguments."""

    config: str

    def __call__(self, value: Any) -> list[tuple[str, str]]:
        if not isinstance(value, Mapping):
            return []
        known = known_arguments(self.config)
        return [
            (name, text) for name, given in value.items() if (text := _problem(name, given, known))
        ]


SFT_ARGUMENTS = TrainingArgumentsOf("trainer/sft_config.py")
DPO_ARGUMENTS = TrainingArgumentsOf("trainer/dpo_config.py")


@cache
def known_arguments(config: str) -> Mapping[str, str]:
    """Field name -> annotation as written, for TrainingArguments and TRL's additions."""
    known: dict[str, str] = {}
    for package, file in (*_BASE, ("trl", config)):
        for node in _classes(package, file):
            if node.name.endswith(("TrainingArguments", "Config")):
                known |= {
                    item.target.id: ast.unparse(item.annotation)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    return {name: kind for name, kind in known.items() if not name.startswith("_")}


@cache
def enum_values() -> Mapping[str, tuple[str, ...]]:
    """Enum name -> its values, for the enums whose members are text (schedulers, optimisers, strategies)."""
    return {
        node.name: tuple(
            item.value.value
            for item in node.body
            if isinstance(item, ast.Assign)
            and isinstance(item.value, ast.Constant)
            and isinstance(item.value.value, str)
        )
        for package, file in _ENUMS
        for node in _classes(package, file)
        if any("Enum" in ast.unparse(base) for base in node.bases)
    }


def _classes(package: str, file: str) -> list[ast.ClassDef]:
    spec = find_spec(package)
    assert spec and spec.submodule_search_locations, f"{package} is a dependency of dualign"
    source = Path(spec.submodule_search_locations[0]) / file
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def _problem(name: str, value: Any, known: Mapping[str, str]) -> str | None:
    if name in OWNED:
        return f"is set by dualign: {OWNED[name]}"
    if name.startswith("hub_"):
        return f"is set by dualign: {OWNED['push_to_hub']}"
    if name in RENAMED and name not in known:
        return f"unknown training argument (now {RENAMED[name]})"
    if name not in known:
        return (
            f"unknown training argument{nearest(name, [key for key in known if key not in OWNED])}"
        )
    kinds = set(re.findall(r"\w+", known[name]))
    choices = [value for kind in kinds for value in enum_values().get(kind, ())]
    if isinstance(value, str) and choices:
        return None if value in choices else f"unknown value {value!r}{nearest(value, choices)}"
    if _fits(value, kinds):
        return None
    hint = (
        "; YAML reads no as false: write it in quotes" if value is False and "no" in choices else ""
    )
    return f"expected {known[name]}, found {value!r}{hint}"


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
