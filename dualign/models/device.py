"""The device that models run on."""


def gpu_name() -> str | None:
    """Return the name of the first GPU; None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def device_name() -> str:
    """Return what training runs on, by which measured times are compared: the GPU, or the CPU."""
    from dualign.checkpoints.shards import cpu_count

    return gpu_name() or f"{_processor()}, {cpu_count()} cores"


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
