"""The logits of what was saved, for comparison with the live model's.

On several processes the saved model is loaded in a fresh one: under ZeRO-3 transformers shards every model that a
training process loads, and waits for the other ranks.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualign.errors import CheckpointError
from dualign.models.loading import load_checkpoint, nf4_settings

_LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)


def saved_logits(folder: Path, ids_BT: Tensor, *, dtype: str, attention: str, nf4: bool) -> Tensor:
    """float32 logits [B, T, V] of the model or adapter in `folder`, on the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _in_a_fresh_process(folder, ids_BT, dtype, attention, nf4)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    if nf4:
        options |= {
            "quantization_config": nf4_settings(dtype),
            "device_map": {"": str(ids_BT.device)},
        }
    model = load_checkpoint(folder, **options)
    if not nf4:
        model = model.to(ids_BT.device)
    return logits_of(model, ids_BT)


def logits_of(model: torch.nn.Module, ids_BT: Tensor) -> Tensor:
    """float32 logits [B, T, V] on the CPU, without gradients; leaves the model in evaluation mode."""
    model.eval()
    with torch.no_grad():
        logits_BTV: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits_BTV.float().cpu()


def _in_a_fresh_process(
    folder: Path, ids_BT: Tensor, dtype: str, attention: str, nf4: bool
) -> Tensor:
    asked, answered = folder / ".probe.safetensors", folder / ".logits.safetensors"
    save_file({"ids": ids_BT.cpu().contiguous()}, asked)
    command = [
        sys.executable,
        "-m",
        "dualign.models.logits",
        str(folder),
        dtype,
        attention,
        "nf4" if nf4 else "plain",
    ]
    done = subprocess.run(
        command, env=_plain_environment(os.environ), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CheckpointError(
            f"{folder}: what was saved can't be loaded again:\n{done.stderr[-2000:]}"
        )
    logits_BTV: Tensor = load_file(answered)["logits"]
    asked.unlink()
    answered.unlink()
    return logits_BTV


def _plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    launcher = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "DS_", "DEEPSPEED_")
    return {
        name: value
        for name, value in environment.items()
        if name not in _LAUNCHER_VARIABLES and not name.startswith(launcher)
    }


def _main(folder: str, dtype: str, attention: str, kind: str) -> None:
    place = Path(folder)
    ids_BT = load_file(place / ".probe.safetensors")["ids"]
    logits_BTV = saved_logits(place, ids_BT, dtype=dtype, attention=attention, nf4=kind == "nf4")
    save_file({"logits": logits_BTV.contiguous()}, place / ".logits.safetensors")


if __name__ == "__main__":
    _main(*sys.argv[1:])
