"""What a bug report needs of this machine: versions, hardware, settings. No secrets."""

import os
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

from dualign.rundir import cache_folder, tokens_folder

_SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRANSFORMERS_OFFLINE",
    "WORLD_SIZE",
)
"""Variables whose values are shown; of all others not even the names, since they may tell a secret."""


_RECORDED = (
    "dualign",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "deepspeed",
)


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    listed = {"python": sys.version.split()[0]}
    for package in _RECORDED:
        with suppress(PackageNotFoundError):
            listed[package] = version(package)
    return listed


def describe_environment() -> dict[str, dict[str, Any]]:
    """Return what is installed and what this machine has, by section. Imports torch."""
    return {
        "dualign": {
            "dualign": version("dualign"),
            "python": f"{platform.python_version()} ({sys.executable})",
            "system": platform.platform(),
            "cache": str(cache_folder()),
            "prepared rows": str(tokens_folder()),
        },
        "packages": {name: _version(name) for name in _requirements()},
        "hardware": _hardware(),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def _requirements() -> list[str]:
    """Return the names of the packages that dualign needs, or that an extra for users does."""
    listed = metadata("dualign").get_all("Requires-Dist") or []
    names = (
        re.match(r"[A-Za-z0-9._-]+", line)
        for line in listed
        if not re.search(r"extra == .(dev|docs)\b", line)
    )
    return list(dict.fromkeys(name.group() for name in names if name))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware() -> dict[str, Any]:
    import psutil
    import torch

    devices = {
        f"GPU {i}": f"{item.name}, {item.total_memory / 1e9:.0f} GB, capability {item.major}.{item.minor}"
        for i in range(torch.cuda.device_count())
        if (item := torch.cuda.get_device_properties(i))
    }
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": f"{psutil.cpu_count(logical=False)} ({psutil.cpu_count()} threads)",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "CUDA": torch.version.cuda or "not built in",
        "GPUs": len(devices),
        **devices,
    }
