"""A stage of a recipe that is launched: on this machine, or on several that meet."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from dualign.distributed import launch
from dualign.errors import CheckpointError
from dualign.launcher import Launch, Machine, launch_settings
from dualign.machines import Meeting, free_port, this_machine
from dualign.recipe import Recipe, StageEntry
from dualign.stages import stage_kind

logger = logging.getLogger(__name__)


def machine_of(recipe: Recipe, *, only: str | None, rank: int | None) -> Machine | None:
    """Return which of several machines this one is; None: the run has one.

    Args:
        only: the stage that is run; None: all.
        rank: the number of this machine, where no scheduler says it.

    Raises:
        ConfigError: the recipe and the scheduler name other machines, or nobody says which is which.
    """
    launches = [
        entry.config.launch
        for entry in recipe.stages
        if only in (None, entry.name) and getattr(entry.config, "launch", None)
    ]
    return this_machine(launches, os.environ, rank=rank)


def launch_stage(recipe: Recipe, entry: StageEntry, meeting: Meeting | None) -> None:
    """Start the stage through accelerate launch, as a user would by hand, and wait for it.

    Raises:
        CheckpointError: a launcher failed.
    """
    arguments, settings = _arguments(recipe, entry), entry.config.launch
    if meeting and launch_settings(settings, meeting.machine.count)["num_machines"] > 1:
        port = free_port()
        meeting.call({"stage": entry.name, "port": port})
        _launch_part(settings, arguments, meeting, port)
        return
    line, code = launch(settings, arguments)
    if code:
        raise CheckpointError(
            f"stage {entry.name}: {line} exited with {code}; its messages are above"
        )


def follow(recipe: Recipe, meeting: Meeting) -> None:
    """Start this machine's part of every stage that machine 0 launches on all, until that is done.

    Raises:
        CheckpointError: a launcher failed, or machine 0 has ended.
    """
    while turn := meeting.next_turn():
        entry = recipe.stage(turn["stage"])
        _launch_part(entry.config.launch, _arguments(recipe, entry), meeting, turn["port"])


def _launch_part(launch_of: Launch, arguments: Sequence[str], meeting: Meeting, port: int) -> None:
    """Run this machine's part of a launch, and wait until all machines say how theirs ended.

    A launcher that was killed is started again where torchrun's restarts are wanted: the others wait
    for it at their rendezvous. Machine 0 serves that, so there the launch ends.
    """
    machine = replace(meeting.machine, port=port)
    lives = launch_settings(launch_of)["max_restarts"] if machine.rank else 0
    code = launch(launch_of, arguments, machine=machine, listen=meeting.listen)[1]
    while code < 0 and lives > 0:
        lives -= 1
        logger.info(
            "machine %d: its launcher ended by signal %d; starting it again", machine.rank, -code
        )
        code = launch(launch_of, arguments, machine=machine, listen=meeting.listen)[1]
    meeting.done(code)


def _arguments(recipe: Recipe, entry: StageEntry) -> list[str]:
    command = stage_kind(entry.kind).command
    assert command is not None, f"kind {entry.kind} has `launch` and no command in STAGE_KINDS"
    # argparse takes overrides right after the recipe only.
    return [command, "--stage", entry.name, str(recipe.file), *recipe.overrides]
