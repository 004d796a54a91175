"""How a stage is launched: what its recipe says of it, and the command line of `accelerate launch`.

`launch` of a recipe is an accelerate config file, or keys around one:

    launch: zero3.yaml
    launch: {config_file: zero3.yaml, num_processes: 4, max_restarts: 3}
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.config import read_yaml
from dualign.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """An accelerate config file, and what may differ from it; the names are those of `accelerate launch`."""

    config_file: str
    """an accelerate config file"""
    num_processes: int | None = None
    """processes on all machines together; absent: on each machine as many as the file says"""
    max_restarts: int = 0
    """how often torchrun starts the processes again after one of them failed, from the last checkpoint"""

    def problems(self) -> list[tuple[str, str]]:
        least = {"num_processes": 1, "max_restarts": 0}
        return [
            (name, f"expected {bound} or more, found {value}")
            for name, bound in least.items()
            if (value := getattr(self, name)) is not None and value < bound
        ]


Launch = str | LaunchConfig
"""What a recipe's `launch` is: a file, or keys around one."""


def launch_settings(launch: Launch | None) -> dict[str, Any]:
    """Return the accelerate config of a stage's `launch`, with its own keys over the file's; {} for None.

    `num_processes` is that of all machines together.

    Raises:
        ConfigError: the file is missing or isn't YAML, or its counts don't fit.
    """
    if launch is None:
        return {}
    keys = launch if isinstance(launch, LaunchConfig) else LaunchConfig(config_file=launch)
    settings = dict(read_yaml(Path(keys.config_file)).value)
    machines = _count(settings, "num_machines", keys.config_file)
    settings["num_processes"] = (
        keys.num_processes or _of_a_machine(settings, keys.config_file) * machines
    )
    settings["num_machines"] = machines
    require_even(settings["num_processes"], machines, keys.config_file)
    return settings | {"max_restarts": keys.max_restarts}


def config_file(launch: Launch) -> str:
    """Return the accelerate config file of a stage's `launch`."""
    return launch.config_file if isinstance(launch, LaunchConfig) else launch


def _of_a_machine(settings: Mapping[str, Any], file: str) -> int:
    """Return how many processes an accelerate config starts on each of its machines."""
    machines, processes = (
        _count(settings, f"num_{name}", file) for name in ("machines", "processes")
    )
    require_even(processes, machines, file)
    return processes // machines


def require_even(processes: int, machines: int, place: str) -> None:
    """Refuse processes that accelerate would start fewer of, since it starts as many on each machine.

    Raises:
        ConfigError: they can't be shared alike.
    """
    if processes % machines:
        raise ConfigError(
            f"{place}: {processes} processes can't be shared by {machines} machines alike: "
            "set num_processes, which counts those of all machines, to a multiple of num_machines"
        )


def _count(settings: Mapping[str, Any], name: str, file: str) -> int:
    value = settings.get(name, 1)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{file}: {name}: expected 1 or more, found {value!r}")
    return value


def launch_command(launch: Launch, arguments: Sequence[str]) -> list[str]:
    """Return the command line that starts `dualign ARGUMENTS` on this machine."""
    settings = launch_settings(launch)
    command = [sys.executable, "-m", "dualign.first_failure"]
    command += ["--config_file", config_file(launch)]
    if isinstance(launch, LaunchConfig):
        command += ["--num_processes", str(settings["num_processes"])]
    if restarts := settings["max_restarts"]:
        command += ["--max_restarts", str(restarts)]
    return [*command, "-m", "dualign", *arguments]
