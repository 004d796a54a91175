"""The device that models run on."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What decides the types that a model is trained in."""

    kind: str
    """torch's name: cuda (also ROCm), xpu, mps, ..., or cpu"""
    bfloat16: bool = False
    """multiplies bfloat16 in hardware; False where torch only emulates it (Turing, Volta, MPS)"""


def this_device(*, use_cpu: bool = False) -> Device:
    """Return the device that this process trains on; imports torch."""
    import torch

    accelerator = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return Device(kind="cpu")
    supports = {"cuda": torch.cuda.is_bf16_supported, "xpu": torch.xpu.is_bf16_supported}
    kind = accelerator.type
    return Device(
        kind=kind, bfloat16=kind in supports and bool(supports[kind](including_emulation=False))
    )


def gpu_name() -> str | None:
    """Return the name of the first GPU; None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def device_name(*, on_cpu: bool = False) -> str:
    """Return what training runs on, by which measured times are compared: the GPU, or the CPU.

    Args:
        on_cpu: it stays on the CPU, also where there is a GPU.
    """
    from dualign.checkpoints.shards import cpu_count

    return (None if on_cpu else gpu_name()) or f"{_processor()}, {cpu_count()} cores"


def _processor() -> str:
    import platform
    from contextlib import suppress
    from pathlib import Path

    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
