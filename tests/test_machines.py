"""Which machine of a run this one is, and how machines meet."""

import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dualign.errors import CheckpointError, ConfigError
from dualign.launcher import Launch, LaunchConfig, Machine
from dualign.machines import Meeting, first_host, free_port, this_machine

ZERO3 = str(Path(__file__).parents[1] / "recipes" / "accelerate" / "zero3.yaml")
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
SKYPILOT = {
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
}
TWO = LaunchConfig(config_file=ZERO3, num_machines=2, main_process_ip="10.0.0.5")


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        (SRUN, "gpu07"),
        (SRUN | {"MASTER_ADDR": "10.1.0.1"}, "10.1.0.1"),
        (SKYPILOT, "10.0.0.5"),
        (
            {"PET_NODE_RANK": "1", "PET_NNODES": "2", "PET_MASTER_ADDR": "10.2.0.1"},
            "10.2.0.1",
        ),
    ],
    ids=["srun", "MASTER_ADDR", "SkyPilot", "torchrun"],
)
def test_a_scheduler_says_which_machine_this_is(
    environment: Mapping[str, str], address: str
) -> None:
    assert this_machine([ZERO3], environment) == Machine(
        rank=1, count=2, address=address, port=29500
    )


def test_the_recipe_says_it_where_no_scheduler_does() -> None:
    assert this_machine([TWO], {"MASTER_PORT": "1234"}, rank=1) == Machine(
        rank=1, count=2, address="10.0.0.5", port=1234
    )
    assert this_machine([TWO], SRUN) == Machine(rank=1, count=2, address="10.0.0.5", port=29500)


def test_one_machine_needs_nothing() -> None:
    """Neither does a batch script or shell of SLURM that no srun started: it is on the first node alone."""
    script = {"SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "gpu[07-08]"}
    for launches in ([], [ZERO3]):
        for environment in ({}, script, SRUN | {"SLURM_STEP_NUM_NODES": "1"}):
            assert this_machine(launches, environment) is None


@pytest.mark.parametrize(
    ("launches", "environment", "rank", "message"),
    [
        ([TWO], {}, None, "launch names 2 machines: start `dualign run` once on each machine"),
        (
            [],
            SRUN,
            None,
            "srun started this on 2 machines, and no stage of the recipe has `launch`",
        ),
        ([TWO], SRUN | {"SLURM_STEP_NUM_NODES": "4", "SLURM_STEP_NUM_TASKS": "4"}, None, "2 and 4"),
        (
            [ZERO3],
            {},
            1,
            "--machine-rank says .* `launch` of the stages says no number of machines",
        ),
        ([TWO], {}, 2, "machine 2 of 2: expected a number from 0 to 1"),
        ([ZERO3], SRUN | {"SLURM_STEP_NUM_TASKS": "16"}, None, "use --ntasks-per-node=1"),
        ([ZERO3], SRUN | {"SLURM_NODEID": "x"}, None, "slurm's variables can't be read"),
        ([TWO], {"MASTER_PORT": "x"}, 0, "MASTER_PORT: expected a whole number, found 'x'"),
        (
            [LaunchConfig(config_file=ZERO3, num_machines=2)],
            {},
            0,
            "nothing says where machine 0 is",
        ),
    ],
)
def test_machines_that_nobody_or_two_say_are_refused(
    launches: list[Launch], environment: Mapping[str, str], rank: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        this_machine(launches, environment, rank=rank)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[07-09,12]-ib,login", "gpu07-ib"),
        ("a,gpu[1-2]", "a"),
        ("gpu[3,5]", "gpu3"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def on_two(*parts: Callable[[Meeting], object]) -> list[object]:
    """What each machine's part returns or raises; each is a thread with a connection of its own."""
    port, told = free_port(), threading.Barrier(len(parts))

    def run(number: int) -> object:
        machine = Machine(rank=number, count=len(parts), address="127.0.0.1", port=port)
        try:
            with Meeting(machine) as meeting:
                told.wait()
                return parts[number](meeting)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(parts)) as pool:
        return [*pool.map(run, range(len(parts)))]


def test_machines_exchange_what_they_have_and_follow_machine_0() -> None:
    def first(meeting: Meeting) -> object:
        values = meeting.gather({"is": 0}), meeting.gather("again")
        meeting.call({"stage": "sft"})
        meeting.done(0)
        meeting.call(None)
        return values

    def second(meeting: Meeting) -> object:
        values = meeting.gather({"is": 1}), meeting.gather("and again")
        assert meeting.next_turn() == {"stage": "sft"}
        meeting.listen()
        meeting.done(0)
        assert meeting.next_turn() is None
        return values

    both = ([{"is": 0}, {"is": 1}], ["again", "and again"])
    assert on_two(first, second) == [both, both]


def test_a_machine_that_fails_ends_the_others_with_its_words() -> None:
    def fails(_: Meeting) -> object:
        raise CheckpointError("stage data: no rows")

    ended, waited = on_two(fails, Meeting.next_turn)
    assert str(ended) == "stage data: no rows"
    assert f"machine 0 ({socket.gethostname()}) ended: stage data: no rows" in str(waited)
    waited, ended = on_two(lambda meeting: meeting.gather(1), fails)
    assert "machine 1" in str(waited) and "ended: stage data: no rows" in str(waited)


def test_the_launcher_that_failed_first_is_named_everywhere() -> None:
    def first(meeting: Meeting) -> object:
        meeting.call({})
        while True:
            meeting.listen()

    def second(meeting: Meeting) -> object:
        meeting.next_turn()
        return meeting.done(-9)

    words = "its launcher exited with -9; its messages are above"
    assert all(words in str(error) and "machine 1" in str(error) for error in on_two(first, second))


def test_a_port_in_use_and_a_number_given_twice_are_refused() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(CheckpointError, match=f"127.0.0.1:{port}: machine 0 can't serve there"):
            Meeting(Machine(rank=0, count=2, address="127.0.0.1", port=port))
    first = Machine(rank=0, count=2, address="127.0.0.1", port=free_port())
    other = Machine(rank=1, count=2, address="127.0.0.1", port=first.port)
    kept = Meeting(first), Meeting(other)
    with pytest.raises(CheckpointError, match="machine 1 is there already"):
        Meeting(other)
    kept[0]._store = None  # type: ignore[assignment]  # as if its process had been killed
    with pytest.raises(CheckpointError, match="has ended without a word, so machine 1 ends too"):
        kept[1].next_turn()


def test_a_free_port_is_none_that_connections_get() -> None:
    with socket.socket() as taken:
        taken.bind(("", free_port()))
        taken.listen()
        port = free_port()
        assert port != taken.getsockname()[1]
        assert 20_000 <= port < 32_768
