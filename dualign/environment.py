"""This process and its machine: memory, and what a bug report needs. No secrets."""

import getpass
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

from dualign.rundir import cache_folder, tokens_folder
from dualign.version import __version__

_SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRANSFORMERS_OFFLINE",
    "WORLD_SIZE",
)
"""Variables whose values are shown; of all others not even the names, since they may tell a secret."""

_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")  # Docker's, Podman's
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

_NAME = r"""[^/\\:;,'"]+(?=[/\\])|[^/\\\s:;,'"]+"""
"""A user's folder in a path; spaces belong to it where the path goes on."""

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
    """Return what is installed and what this machine has, by section.

    It imports torch, and says so where that fails, however it does. Names of users and passwords
    in paths and addresses are left out.
    """
    settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    return {
        "dualign": {
            "dualign": __version__,
            "python": f"{platform.python_version()} ({_public(sys.executable)})",
            "system": platform.platform(),
            "container": "yes" if any(map(os.path.exists, _CONTAINER_MARKS)) else "no",
            "cache": _folder(cache_folder),
            "prepared rows": _folder(tokens_folder),
        },
        "packages": {name: _version(name) for name in _requirements()},
        "hardware": {**_machine(), **_gpus()},
        "settings": {name: _public(value) for name, value in settings.items()},
    }


def _folder(folder: Callable[[], Path]) -> str:
    try:
        return _public(str(folder()))
    except RuntimeError:  # a user without a home, as in a container
        return "unknown: there is no home folder"


def _public(text: str) -> str:
    """Return a text without the user's name in its paths and without passwords in its addresses.

    >>> _public("no /home/ada/lib.so, asked http://ada:secret@host:1/v1")
    'no /home/USER/lib.so, asked http://host:1/v1'
    """
    text = re.sub(r"(//|:/)[^/\s]*@", r"\1", text)  # a Path has made s3:/ of s3://
    with suppress(RuntimeError):
        home = str(Path.home())
        if len(home) > 1:
            text = re.sub(rf"(?<![\w.~/\\-]){re.escape(home)}(?![\w.-])", "~", text)
    text = re.sub(rf"(/home/|/Users/|[A-Z]:\\Users\\)({_NAME})", r"\1USER", text)
    with suppress(KeyError, OSError, ImportError):  # a number without a name, as in a container
        name = re.escape(getpass.getuser())
        return re.sub(rf"(?<=[/\\]){name}(?![\w.-])", "USER", text)
    return text


def _requirements() -> list[str]:
    """Return the names of the packages that dualign needs, or that an extra for users does."""
    try:
        listed = metadata("dualign").get_all("Requires-Dist") or []
    except PackageNotFoundError:  # a checkout that isn't installed
        listed = [name for name in _RECORDED if name != "dualign"]
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


def _machine() -> dict[str, str]:
    processor = {"processor": platform.processor() or platform.machine()}
    try:
        import psutil
    except ImportError:
        return {**processor, "cores": str(os.cpu_count())}
    memory = f"{psutil.virtual_memory().total / 1e9:.1f} GB"
    with suppress(OSError, ValueError):  # `max` where there is no limit
        memory += f", of which {int(_CGROUP_LIMIT.read_text()) / 1e9:.1f} GB for this container"
    cores = f"{psutil.cpu_count(logical=False) or 'unknown'} ({psutil.cpu_count()} threads)"
    return {**processor, "cores": cores, "memory": memory}


def _gpus() -> dict[str, Any]:
    try:
        return _seen_by_torch()
    except Exception as error:  # a broken torch raises anything, and the report may be about it
        line = next(iter(str(error).strip().splitlines()), "no message")
        return {"torch": f"doesn't work: {type(error).__name__}: {_public(line)}"}


def _seen_by_torch() -> dict[str, Any]:
    import torch

    devices = {
        f"GPU {i}": f"{item.name}, {item.total_memory / 1e9:.0f} GB, capability {item.major}.{item.minor}"
        for i in range(torch.cuda.device_count())
        if (item := torch.cuda.get_device_properties(i))
    }
    return {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "CUDA": torch.version.cuda or "not built in",
        "GPUs": len(devices),
        **devices,
    }


def peak_memory_mb() -> float:
    """Return the peak of this process's resident memory in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
