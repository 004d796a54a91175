"""Logits of a saved model, and how far they are from the live one's.

On several processes the saved model is loaded in a fresh one: under ZeRO-3 transformers shards
every model that a training process loads, and waits for the other ranks.

Shapes: B rows, T tokens, V vocabulary.
"""

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualign.attention.segments import Segments
from dualign.errors import CheckpointError
from dualign.models.loading import load_checkpoint, nf4_options

# Largest difference of a logit, as a share of the largest logit, where all is float32. Sums in
# another order differ by about 3e-6 of it.
FLOAT32_BOUND = 1e-5
FLOOR = 1e-4
# Where something is rounded to 16 bits or less, the root mean square of the difference, as a share
# of that of the logits; the largest of millions of rounding errors says less. Measured on a 135M
# model: rounding 0.4 to 1.2 %, a missing adapter 2.5 % after four steps and more after more.
ROUNDED_BOUND = 2.5e-2

logger = logging.getLogger(__name__)
_LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)
_LAUNCHER_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "DS_", "DEEPSPEED_")


def logits_of(
    model: torch.nn.Module, ids_BT: Tensor, *, segments: Segments | None = None
) -> Tensor:
    """Return float32 logits [B, T, V] on the CPU; leaves the model in evaluation mode.

    Args:
        segments: of the ids, if the model's attention is dualign's.
    """
    model.eval()
    more = {} if segments is None else {"segments": segments}
    with torch.no_grad():
        logits_BTV: Tensor = model(input_ids=ids_BT, use_cache=False, **more).logits
    return logits_BTV.float().cpu()


def compare_logits(live_BTV: Tensor, saved_BTV: Tensor) -> dict[str, float]:
    """Return the largest difference, the largest logit, and RMS(difference) / RMS(logits)."""
    difference_BTV = live_BTV - saved_BTV
    return {
        "reload_max_logit_difference": float(difference_BTV.abs().max()),
        "largest_logit": float(live_BTV.abs().max()),
        "reload_rms_share": float(difference_BTV.norm() / live_BTV.norm()),
    }


def saved_logits(folder: Path, ids_BT: Tensor, *, dtype: str, attention: str, nf4: bool) -> Tensor:
    """Return float32 logits [B, T, V] of the model or adapter in `folder`, on the CPU.

    Args:
        attention: that it is loaded with; empty: the one that its users get.
    """
    if "LOCAL_RANK" in os.environ:  # ZeRO-3 would shard the second model as well
        return _from_fresh_process(folder, ids_BT, dtype, attention, nf4)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if attention:
        options["attn_implementation"] = attention

    def logits_on(device: torch.device) -> Tensor:
        if nf4:
            model = load_checkpoint(folder, **options, **nf4_options(dtype, str(device)))
        else:
            model = load_checkpoint(folder, **options).to(device)
        return logits_of(model, ids_BT.to(device))

    return _where_it_fits(logits_on, ids_BT.device)


def _where_it_fits(compute: Callable[[torch.device], Tensor], device: torch.device) -> Tensor:
    """Compute on the device of the live model, or on the CPU if that has no room for a second one.

    A card that held one model while it trained must not fail at the end.
    """
    try:
        return compute(device)
    except torch.OutOfMemoryError:
        logger.warning(
            "%s has no room for a second model: what was saved is compared on the CPU", device
        )
    gc.collect()  # outside of the handler, whose traceback holds the model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return compute(torch.device("cpu"))


def _from_fresh_process(
    folder: Path, ids_BT: Tensor, dtype: str, attention: str, nf4: bool
) -> Tensor:
    ids_file, logits_file = folder / ".probe.safetensors", folder / ".logits.safetensors"
    save_file({"ids": ids_BT.cpu().contiguous()}, ids_file)
    kind = "nf4" if nf4 else "plain"
    command = [sys.executable, "-m", "dualign.models.logits", str(folder), dtype, attention, kind]
    process = subprocess.run(
        command, env=_plain_environment(os.environ), capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise CheckpointError(
            f"{folder}: what was saved can't be loaded again:\n{process.stderr[-2000:]}"
        )
    logits_BTV: Tensor = load_file(logits_file)["logits"]
    ids_file.unlink()
    logits_file.unlink()
    return logits_BTV


def _plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name not in _LAUNCHER_VARIABLES and not name.startswith(_LAUNCHER_PREFIXES)
    }


def _main(directory: str, dtype: str, attention: str, kind: str) -> None:
    folder = Path(directory)
    ids_BT = load_file(folder / ".probe.safetensors")["ids"]
    logits_BTV = saved_logits(folder, ids_BT, dtype=dtype, attention=attention, nf4=kind == "nf4")
    save_file({"logits": logits_BTV.contiguous()}, folder / ".logits.safetensors")


if __name__ == "__main__":
    _main(*sys.argv[1:])
