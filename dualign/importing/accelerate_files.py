"""Accelerate config files (`launch`) made from DeepSpeed's JSON and from FSDP's keys of other tools."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.importing.draft import Draft
from dualign.importing.yaml_text import yaml_lines

_BY_NAME = re.compile(
    r"(ds_)?z(ero)?_?(?P<stage>[0-3])(_bf16)?(?P<offload>_offload|_cpuoffload_all|_cpuoffload_params)?"
    r"(_torch_compile)?(_config)?(_bf16)?"
)
"""Names of the files that axolotl, LLaMA-Factory and TRL ship: zero3_bf16, ds_z3_offload_config, zero2."""
_AUTO = ("auto", None)
# Of DeepSpeed's JSON: what the recipe or accelerate's file says instead.
_SAID_ELSEWHERE = [
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "train_batch_size",
    "zero_optimization",
    "train_micro_batch_size_per_gpu",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
]


def deepspeed_config(draft: Draft) -> tuple[dict[str, Any] | None, str]:
    """Return DeepSpeed's settings of a file, and words for a guess by its name; None if there are none."""
    value = draft.get("deepspeed")
    config = dict(value) if isinstance(value, Mapping) else _read_deepspeed(draft, str(value))
    if config is not None:
        return config, ""
    return _by_name(str(value)), " (by the file's name: it isn't here)"


def _by_name(name: str) -> dict[str, Any] | None:
    """Return the settings of a file that isn't here by its well-known name; None if it has none."""
    known = _BY_NAME.fullmatch(Path(name).stem)
    if known is None:
        return None
    zero: dict[str, Any] = {"stage": int(known["stage"])}
    if known["offload"] in ("_offload", "_cpuoffload_all"):
        zero["offload_optimizer"] = {"device": "cpu"}
    if known["offload"] and known["stage"] == "3":
        zero["offload_param"] = {"device": "cpu"}
    return {"zero_optimization": zero}


def _read_deepspeed(draft: Draft, path: str) -> dict[str, Any] | None:
    """Return a DeepSpeed JSON file; None if it isn't there.

    A file that isn't JSON is a problem of the draft.
    """
    place = draft.find(path)
    if place is None or not place.is_file():
        return None
    try:
        value = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        draft.problems.append(f"{place}: not JSON: {error}")
        return None
    if not isinstance(value, dict):
        draft.problems.append(f"{place}: expected an object with zero_optimization")
        return None
    return value


def deepspeed_settings(config: Mapping[str, Any], share: int = 1) -> dict[str, Any]:
    """Return accelerate's settings for a DeepSpeed config; processes that share a row in groups of `share`."""
    zero = _zero(config)
    stage = zero["stage"]
    keys: dict[str, Any] = {"zero_stage": stage}
    if stage == 3:
        keys |= {"zero3_init_flag": True, "zero3_save_16bit_model": True}
    for name in ("optimizer", "param"):
        offload = zero.get(f"offload_{name}")
        device = offload.get("device") if isinstance(offload, Mapping) else None
        keys[f"offload_{name}_device"] = device or "none"
    keys["deepspeed_multinode_launcher"] = "standard"
    settings: dict[str, Any] = {"distributed_type": "DEEPSPEED"}
    if share > 1:
        settings["num_processes"] = share
        settings["parallelism_config"] = {
            "parallelism_config_sp_backend": "deepspeed",
            "parallelism_config_sp_size": share,
            "parallelism_config_dp_replicate_size": 1,
        }
    return {**settings, "deepspeed_config": keys}


def _zero(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ZeRO's part of a DeepSpeed config, with its stage; 0 where it says none."""
    zero = config.get("zero_optimization")
    zero = dict(zero) if isinstance(zero, Mapping) else {}
    stage = zero.get("stage")
    return {**zero, "stage": stage if isinstance(stage, int) else 0}


def left_out(config: Mapping[str, Any]) -> list[str]:
    """Return what of a DeepSpeed config isn't in accelerate's settings, as `key: value`."""
    zero = _zero(config)
    known = {"stage", "offload_optimizer", "offload_param"}
    keys = {f"zero_optimization.{name}": item for name, item in zero.items() if name not in known}
    keys |= {name: item for name, item in config.items() if name not in _SAID_ELSEWHERE}
    return [name for name, item in keys.items() if item not in _AUTO]


def fsdp_settings(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return accelerate's settings for FSDP2, with keys of accelerate's own names over the defaults."""
    config = {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_activation_checkpointing": False,
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_offload_params": False,
    }
    return {"distributed_type": "FSDP", "fsdp_config": {**config, **keys}}


def add_launch(draft: Draft, settings: Mapping[str, Any], *, precision: str = "bf16") -> str:
    """Add an accelerate config beside the recipe, and launch the stage by it; returns its name."""
    name = f"{draft.recipe['name']}-launch.yaml"
    values = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": 1,
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": precision,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
        **settings,
    }
    head = [
        f"# How {draft.recipe['name']} is launched (docs/distributed.md), made by `dualign import`.",
        "# Without num_processes a process is started on each GPU.",
    ]
    draft.files[name] = "\n".join([*head, *yaml_lines(values, {})]) + "\n"
    draft.put("launch", name)
    return name
