"""axolotl's DeepSpeed, FSDP and context parallelism -> an accelerate config beside the recipe."""

from typing import Any

from dualign.importing.accelerate_files import (
    add_launch,
    deepspeed_settings,
    fsdp_settings,
)
from dualign.importing.draft import Draft
from dualign.importing.launchers import launch_by_deepspeed

_ZERO_3: dict[str, Any] = {"zero_optimization": {"stage": 3}}


def fill_launch(draft: Draft) -> None:
    """Write an accelerate config for DeepSpeed, FSDP, or processes that share rows."""
    share_key = next(
        (key for key in ("context_parallel_size", "sequence_parallel_degree") if draft.get(key)),
        None,
    )
    share = int(draft.number(share_key) or 1) if share_key else 1
    if share_key and share < 2:
        draft.carry(share_key, says="1: each process has whole rows, as here")
    fsdp = draft.get("fsdp_config") or draft.get("fsdp")
    if draft.get("deepspeed"):
        launch_by_deepspeed(draft, share=share, precision=_precision(draft))
    elif fsdp and share < 2:
        add_launch(draft, fsdp_settings(_fsdp_keys(draft)), precision=_precision(draft))
    elif share > 1:
        add_launch(draft, deepspeed_settings(_ZERO_3, share), precision=_precision(draft))
        for key in ("fsdp", "fsdp_config"):
            if draft.get(key):
                draft.refuse(
                    key,
                    "rows are shared under DeepSpeed alone: the launch file has ZeRO-3, which shards weights as FSDP does",
                )
    if share_key and share > 1:
        draft.change(
            share_key,
            "launch",
            says=f"is DeepSpeed Ulysses under ZeRO: processes share each row by heads, not as a ring, so the heads must divide "
            f"by {share}; num_processes and dp_replicate_size of the launch file are for {share} GPUs, and a step has "
            "dp_replicate_size x accumulation rows (docs/distributed.md)",
        )


def _precision(draft: Draft) -> str:
    return "fp16" if draft.get("fp16") else "bf16"


def _fsdp_keys(draft: Draft) -> dict[str, Any]:
    """Return accelerate's keys for those of fsdp_config, with and without `fsdp_` before them."""
    keys: dict[str, Any] = {}
    for key in ("fsdp", "fsdp_config"):
        if draft.get(key) is not None:
            draft.change(key, "launch")
    taken = (
        "offload_params",
        "reshard_after_forward",
        "auto_wrap_policy",
        "transformer_layer_cls_to_wrap",
        "min_num_params",
        "state_dict_type",
        "cpu_ram_efficient_loading",
    )
    config = draft.get("fsdp_config")
    for name, value in (config if isinstance(config, dict) else {}).items():
        short = str(name).removeprefix("fsdp_")
        if short in taken:
            keys[f"fsdp_{short}"] = value
            draft.carry(("fsdp_config", name), "launch")
        elif short == "activation_checkpointing" and value:
            draft.change(
                ("fsdp_config", name),
                "train.gradient_checkpointing",
                True,
                "the trainer checkpoints the layers",
            )
        elif name != short and (row := draft.table.row(("fsdp_config", short))):
            note = draft.refuse if row.action == "refused" else draft.change
            note(("fsdp_config", name), says=row.says or "is said by the launch file")
    return keys
