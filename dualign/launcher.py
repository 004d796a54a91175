"""How a stage is launched: what its recipe says of it, and the command line of `accelerate launch`.

`launch` of a recipe is an accelerate config file, or keys around one:

    launch: zero3.yaml
    launch: {config_file: zero3.yaml, num_machines: 2, max_restarts: 3}
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
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
    num_machines: int | None = None
    """machines that train together; absent: those of the file, or if that says 1, those on which `dualign run` was started"""
    num_processes: int | None = None
    """processes on all machines together; absent: on each machine as many as the file says"""
    main_process_ip: str | None = None
    """address of machine 0; absent: that of the file, $MASTER_ADDR, or what SLURM or SkyPilot says"""
    main_process_port: int | None = None
    """port of machine 0 at which the machines meet; absent: that of the file, $MASTER_PORT, or 29500"""
    max_restarts: int = 0
    """how often torchrun starts the processes again after one of them failed, from the last checkpoint"""

    def problems(self) -> list[tuple[str, str]]:
        least = {"num_machines": 1, "num_processes": 1, "main_process_port": 1, "max_restarts": 0}
        return [
            (name, f"expected {bound} or more, found {value}")
            for name, bound in least.items()
            if (value := getattr(self, name)) is not None and value < bound
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One of several machines, and where machine 0 waits for the others."""

    rank: int
    count: int
    address: str
    port: int


DEFAULT_PORT = 29500
"""torch's, where machines meet"""
Launch = str | LaunchConfig
"""What a recipe's `launch` is: a file, or keys around one."""


def launch_settings(launch: Launch | None, machines: int = 1) -> dict[str, Any]:
    """Return the accelerate config of a stage's `launch`, with its own keys over the file's; {} for None.

    `num_processes` is that of `num_machines` together, and absent where neither keys nor file say it:
    accelerate then starts one for each GPU.

    Args:
        machines: those on which the run was started; they count where neither keys nor file name several.

    Raises:
        ConfigError: the file is missing or isn't YAML, or its counts don't fit.
    """
    if launch is None:
        return {}
    keys = launch if isinstance(launch, LaunchConfig) else LaunchConfig(config_file=launch)
    file = keys.config_file
    settings = dict(read_yaml(Path(file)).value)
    listed = _count(settings, "num_machines", file)
    together = keys.num_machines or (listed if listed > 1 else machines)
    processes = keys.num_processes or _of_a_machine(settings, file) * together
    settings = {key: value for key, value in settings.items() if key != "num_processes"}
    settings["num_machines"] = together
    if processes:
        _require_even(processes, together, file)
        settings["num_processes"] = processes
    elif together > 1:
        raise ConfigError(
            f"{file}: {together} machines start num_processes together, which isn't there: set it, or in launch"
        )
    for name in ("main_process_ip", "main_process_port"):
        settings[name] = getattr(keys, name) or settings.get(name)
    return settings | {"max_restarts": keys.max_restarts}


def config_file(launch: Launch) -> str:
    """Return the accelerate config file of a stage's `launch`."""
    return launch.config_file if isinstance(launch, LaunchConfig) else launch


def _of_a_machine(settings: Mapping[str, Any], file: str) -> int:
    """Return how many processes an accelerate config starts on each of its machines; 0: it doesn't say."""
    if settings.get("num_processes") is None:
        return 0
    machines, processes = (
        _count(settings, f"num_{name}", file) for name in ("machines", "processes")
    )
    _require_even(processes, machines, file)
    return processes // machines


def _require_even(processes: int, machines: int, place: str) -> None:
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


def launch_command(
    launch: Launch, arguments: Sequence[str], machine: Machine | None = None
) -> list[str]:
    """Return the command line that starts `dualign ARGUMENTS` on this machine.

    Args:
        machine: this one among several; None: it is alone.
    """
    settings = launch_settings(launch, machine.count if machine else 1)
    command = [sys.executable, "-m", "dualign.first_failure"]
    command += ["--config_file", config_file(launch)]
    if "num_processes" in settings and (machine or isinstance(launch, LaunchConfig)):
        command += ["--num_processes", str(settings["num_processes"])]
    if restarts := settings["max_restarts"]:
        command += ["--max_restarts", str(restarts)]
    if machine:
        command += _several(machine, settings)
    return [*command, "-m", "dualign", *arguments]


def launch_environment(launch: Launch, machine: Machine | None) -> dict[str, str]:
    """Return what `accelerate launch` needs in its environment beside what is there.

    torch's rendezvous gives the address of rank 0 to launchers of the first round only, unless each
    round has a store of its own: one that was started again would wait for it in vain (torch 2.13).
    """
    elastic = machine is not None and launch_settings(launch, machine.count)["max_restarts"]
    return {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if elastic else {}


def _several(machine: Machine, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options that let launchers of several machines find each other.

    accelerate reads rdzv_backend of its file, and doesn't pass it on. `static` keeps rank 0 on machine
    0; only with `c10d` the other machines' launchers notice that one of them starts its ranks again.
    """
    options: dict[str, object] = {
        "num_machines": machine.count,
        "machine_rank": machine.rank,
        "main_process_ip": machine.address,
        "main_process_port": machine.port,
    }
    if settings["max_restarts"] or settings.get("rdzv_backend") == "c10d":
        # Else a launcher looks for its host's name in the address, and two on one host would both serve.
        options |= {"rdzv_backend": "c10d", "rdzv_conf": f"is_host={int(machine.rank == 0)}"}
    if str(settings.get("distributed_type")).upper() == "DEEPSPEED":
        options["deepspeed_multinode_launcher"] = "standard"  # accelerate's default asks for pdsh
    for name, value in options.items():
        yield from (f"--{name}", str(value))
