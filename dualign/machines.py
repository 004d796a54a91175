"""The machines of a run: which of them this one is, and how they agree on what happens next.

`dualign run RECIPE` is started once on each. Machine 0 runs the stages; the others start their part
of every stage that is launched on all. They meet at a store of torch's, which machine 0 serves for as
long as it lives:

    card/0/1    what machine 1 brings to the first exchange: see `Meeting.gather`
    turn/0      the first stage that is launched on all machines, or that there is none any more
    done/0/1    the exit status of machine 1 in it, and in trouble/0 the first that wasn't 0
    failed      who couldn't go on, and why; all others end
"""

import json
import logging
import random
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dualign.errors import CheckpointError, ConfigError
from dualign.launcher import DEFAULT_PORT, Launch, Machine, launch_settings

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # it is documented there

logger = logging.getLogger(__name__)
_HOW = (
    "start `dualign run` once on each machine: by srun or SkyPilot, or with --machine-rank 0, 1, ... "
    "(docs/distributed.md)"
)
_PATIENCE = (
    900.0  # seconds in which all machines have to come; nodes of one job may boot minutes apart
)
_FAREWELL = 20.0  # seconds in which all read why the run ends
_LAST = 300.0  # seconds in which the launchers of all machines end; torchrun's wait for each other as long
_LOOK = 0.25  # seconds between two looks at the store
_PORTS = (20_000, 32_768)  # Linux gives connections ports from 32768 on


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What a scheduler says of this machine."""

    by: str
    rank: int
    count: int
    address: str | None = None


def this_machine(
    launches: Sequence[Launch], environment: Mapping[str, str], *, rank: int | None = None
) -> Machine | None:
    """Return which of several machines this one is; None: the run has one.

    Args:
        launches: `launch` of the stages that have one.
        rank: the number of this machine, where nothing in the environment says it.

    Raises:
        ConfigError: the recipe and the environment name other machines, or nobody says which is which.
    """
    settings = [launch_settings(launch) for launch in launches]
    stated = {item["num_machines"] for item in settings} - {1}
    seen = _scheduler(environment) if rank is None else None
    if seen is None and rank is None and not stated:
        return None
    if not launches:
        raise ConfigError(f"{_who(seen)}, and no stage of the recipe has `launch`: start it on one")
    counts = stated | ({seen.count} if seen else set())
    if len(counts) != 1:
        named = " and ".join(map(str, sorted(counts))) or "no number of"
        raise ConfigError(
            f"{_who(seen)}, and num_machines in `launch` of the stages says {named} machines: "
            "let both be one number, or leave it away in `launch` under SLURM or SkyPilot"
        )
    if seen is None and rank is None:
        raise ConfigError(f"launch names {counts.pop()} machines: {_HOW}")
    count, number = counts.pop(), seen.rank if seen else rank
    assert number is not None
    if not 0 <= number < count:
        raise ConfigError(f"machine {number} of {count}: expected a number from 0 to {count - 1}")
    return Machine(
        rank=number,
        count=count,
        address=_address(settings, environment, seen),
        port=_port(settings, environment),
    )


def _who(seen: _Seen | None) -> str:
    if seen is None:
        return "--machine-rank says that this is one of several machines"
    return f"{seen.by} started this on {seen.count} machines"


def _scheduler(environment: Mapping[str, str]) -> _Seen | None:
    """Return what SLURM, SkyPilot or torchrun's own variables say, if it is several machines."""
    for look in (_slurm, _skypilot, _torchrun):
        try:
            seen = look(environment)
        except ValueError as error:
            raise ConfigError(f"{look.__name__[1:]}'s variables can't be read: {error}") from None
        if seen is not None and seen.count > 1:
            return seen
    return None


def _slurm(environment: Mapping[str, str]) -> _Seen | None:
    """Look for a step: a batch script or shell that isn't started by srun runs on the first node alone."""
    if "SLURM_STEP_ID" not in environment or "SLURM_NODEID" not in environment:
        return None
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", nodes))
    if nodes > 1 and tasks != nodes:
        raise ConfigError(
            f"srun started {tasks} tasks on {nodes} nodes: dualign starts the processes of a node "
            "itself; use --ntasks-per-node=1"
        )
    first = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    return _Seen(
        by="srun", rank=int(environment["SLURM_NODEID"]), count=nodes, address=first or None
    )


def _skypilot(environment: Mapping[str, str]) -> _Seen | None:
    if "SKYPILOT_NODE_RANK" not in environment:
        return None
    addresses = environment.get("SKYPILOT_NODE_IPS", "").split()
    return _Seen(
        by="SkyPilot",
        rank=int(environment["SKYPILOT_NODE_RANK"]),
        count=int(environment.get("SKYPILOT_NUM_NODES", len(addresses) or 1)),
        address=addresses[0] if addresses else None,
    )


def _torchrun(environment: Mapping[str, str]) -> _Seen | None:
    """Look for the variables that torchrun takes its options from, as Kubeflow sets them."""
    if "PET_NODE_RANK" not in environment:
        return None
    return _Seen(
        by="PET_NODE_RANK",
        rank=int(environment["PET_NODE_RANK"]),
        count=int(environment.get("PET_NNODES", "1")),
        address=environment.get("PET_MASTER_ADDR"),
    )


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's list: `gpu[07-09,12]-ib,login` -> `gpu07-ib`."""
    before, bracket, rest = nodes.partition("[")
    if not bracket or "," in before:
        return before.partition(",")[0]
    numbers, _, after = rest.partition("]")
    return f"{before}{numbers.partition(',')[0].partition('-')[0]}{after.partition(',')[0]}"


def _address(
    settings: Sequence[Mapping[str, Any]], environment: Mapping[str, str], seen: _Seen | None
) -> str:
    stated = next((item["main_process_ip"] for item in settings if item["main_process_ip"]), None)
    address = stated or environment.get("MASTER_ADDR") or (seen and seen.address)
    if not address:
        raise ConfigError(
            "nothing says where machine 0 is: set main_process_ip in `launch`, or MASTER_ADDR"
        )
    return str(address)


def _port(settings: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> int:
    stated = next((item["main_process_port"] for item in settings if item["main_process_port"]), 0)
    text = environment.get("MASTER_PORT") or environment.get("PET_MASTER_PORT") or DEFAULT_PORT
    try:
        return int(stated or text)
    except ValueError:
        raise ConfigError(f"MASTER_PORT: expected a whole number, found {text!r}") from None


class Meeting:
    """The machines of a run, as one of them sees them; a context that tells the others how it ended."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._host = socket.gethostname()
        self._exchanges = self._turns = 0
        self._store = _serve(machine) if machine.rank == 0 else _join(machine)
        self._once(f"here/{machine.rank}")

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Tell the others why this machine ends; machine 0 serves the store until all have read that."""
        with suppress(_gone()):
            if error is not None and not self._store.check(["failed"]):
                words = str(error) or f"was stopped ({type(error).__name__})"
                self._store.set("failed", json.dumps([self.machine.rank, self._host, words]))
            self._store.set(f"bye/{self.machine.rank}", "")
            if self.machine.rank == 0:
                self._until(self._of_all("bye"), _FAREWELL, listen=False)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all machines, in their order; each machine calls this equally often.

        Raises:
            CheckpointError: a machine failed, or didn't come in time.
        """
        name, self._exchanges = f"card/{self._exchanges}", self._exchanges + 1
        self._set(f"{name}/{self.machine.rank}", value)
        keys = self._of_all(name)
        if missing := self._until(keys, _PATIENCE):
            numbers = ", ".join(key.rpartition("/")[2] for key in missing)
            raise CheckpointError(
                f"machine {numbers} of {self.machine.count} hasn't come in {_PATIENCE / 60:.0f} "
                f"minutes to {self.machine.address}:{self.machine.port}: {_HOW}"
            )
        return [self._get(key) for key in keys]

    def call(self, turn: Mapping[str, Any] | None) -> None:
        """Let the other machines start their part of a launch; None: there is none any more."""
        self._set(f"turn/{self._turns}", turn)

    def next_turn(self) -> dict[str, Any] | None:
        """Wait until machine 0 calls, however long that takes."""
        key = f"turn/{self._turns}"
        self._until([key], None)
        turn: dict[str, Any] | None = self._get(key)
        return turn

    def done(self, code: int) -> None:
        """Say with which exit status this machine's part of the launch ended, and wait for the others.

        Raises:
            CheckpointError: a part failed; the first that did is named.
        """
        turn, self._turns = self._turns, self._turns + 1
        if code:
            words = f"its launcher exited with {code}; its messages are above"
            if not self._there([f"trouble/{turn}"]):
                self._set(f"trouble/{turn}", [self.machine.rank, self._host, words])
            rank, host, words = self._get(f"trouble/{turn}")
            raise CheckpointError(f"machine {rank} ({host}): {words}")
        self._set(f"done/{turn}/{self.machine.rank}", code)
        if missing := self._until(self._of_all(f"done/{turn}"), _LAST, turn=turn):
            numbers = ", ".join(key.rpartition("/")[2] for key in missing)
            raise CheckpointError(f"machine {numbers} hasn't said how its part of the launch ended")

    def listen(self, turn: int | None = None) -> None:
        """Look whether the others go on, in this launch or in that of number `turn`.

        Raises:
            CheckpointError: one of them can't, or its part of this launch has failed.
        """
        try:
            bad_news = [
                key
                for key in ("failed", f"trouble/{self._turns if turn is None else turn}")
                if self._store.check([key])
            ]
        except _gone():
            raise self._lost() from None
        for key in bad_news:
            rank, host, words = self._get(key)
            if rank != self.machine.rank:
                raise CheckpointError(f"machine {rank} ({host}) ended: {words}")

    def _once(self, key: str) -> None:
        """Refuse a second machine of one number.

        Raises:
            CheckpointError: there is one.
        """
        try:
            if self._store.add(key, 1) > 1:
                raise CheckpointError(
                    f"machine {self.machine.rank} is there already: each needs a number of its own"
                )
        except _gone():
            raise self._lost() from None

    def _of_all(self, name: str) -> list[str]:
        return [f"{name}/{number}" for number in range(self.machine.count)]

    def _until(
        self,
        keys: Sequence[str],
        patience: float | None,
        *,
        turn: int | None = None,
        listen: bool = True,
    ) -> list[str]:
        """Wait for keys; returns those that weren't there in time."""
        end = None if patience is None else time.monotonic() + patience
        while not self._there(keys):
            if listen:
                self.listen(turn)
            if end is not None and time.monotonic() > end:
                return [key for key in keys if not self._there([key])]
            time.sleep(_LOOK)
        return []

    def _there(self, keys: Sequence[str]) -> bool:
        try:
            return bool(self._store.check([*keys]))
        except _gone():
            raise self._lost() from None

    def _set(self, key: str, value: Any) -> None:
        try:
            self._store.set(key, json.dumps(value))
        except _gone():
            raise self._lost() from None

    def _get(self, key: str) -> Any:
        try:
            return json.loads(self._store.get(key))
        except _gone():
            raise self._lost() from None

    def _lost(self) -> CheckpointError:
        place = f"{self.machine.address}:{self.machine.port}"
        return CheckpointError(
            f"machine 0 ({place}) has ended without a word, so machine {self.machine.rank} ends too"
        )


def _gone() -> type[Exception]:
    """Return what torch raises when the store can't be asked."""
    from torch.distributed import DistError

    return DistError


def _serve(machine: Machine) -> "TCPStore":
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined] # as above

    wait = timedelta(seconds=30)  # for an address that isn't one of this machine
    try:
        return TCPStore(
            machine.address, machine.port, is_master=True, wait_for_workers=False, timeout=wait
        )
    except DistError as error:
        raise CheckpointError(
            f"{machine.address}:{machine.port}: machine 0 can't serve there "
            f"({' '.join(str(error).split())[:200]}): set main_process_port in `launch`, or "
            "MASTER_PORT, to a free port, and the address to one of machine 0"
        ) from None


def _join(machine: Machine) -> "TCPStore":
    """Connect to machine 0's store once it is there."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined] # as above

    end, place = time.monotonic() + _PATIENCE, f"{machine.address}:{machine.port}"
    waiting = False
    while True:
        try:
            # torch would write a line for each try.
            socket.create_connection((machine.address, machine.port), timeout=5).close()
            return TCPStore(
                machine.address, machine.port, is_master=False, timeout=timedelta(seconds=60)
            )
        except (OSError, DistError) as error:
            if time.monotonic() > end:
                raise CheckpointError(
                    f"{place}: machine 0 can't be reached ({error}): {_HOW}"
                ) from None
        if not waiting:
            logger.info("machine %d waits for machine 0 at %s", machine.rank, place)
            waiting = True
        time.sleep(_LOOK)


def free_port() -> int:
    """Return a port of this machine that nothing listens at.

    It is below those that kernels give to connections: a launcher takes seconds until it listens, and
    one of these may be another process' by then.
    """
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
