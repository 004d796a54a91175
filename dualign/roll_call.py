"""The roll call of a run: what its processes, or its machines, see has to be the same.

Each says what it has (`card`); whoever has something else is named, with what differs, and all end
before anything is written. A file that the first one makes in the output folder shows whether the
others see that folder at all.
"""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dualign.environment import versions
from dualign.errors import CheckpointError
from dualign.launcher import launch_settings
from dualign.recipe import StageEntry

Gather = Callable[[Any], list[Any]]
"""Gives everybody the values of all, in the order of their numbers."""
_SECONDS = (
    15.0  # in which a new file is seen elsewhere; NFS looks for names that are new to it at once
)
_SHOWN = 8  # differences of a message; a thousand ranks may have the same one


class Status(Protocol):
    """What is asked of a stage's status."""

    @property
    def entry(self) -> StageEntry: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def state(self) -> str: ...


def card(stages: Sequence[Status]) -> dict[str, Any]:
    """Return what this process has: its host, versions, code, and the stages as it reads them."""
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "code": _code(),
        "stages": {
            stage.entry.name: {
                "fingerprint": stage.fingerprint,
                "state": stage.state,
                "keys": {key: _digest(value) for key, value in asdict(stage.entry.config).items()},
                "launch": _launch(stage.entry.config),
            }
            for stage in stages
        },
    }


def call_roll(
    gather: Gather, own: Callable[[], Mapping[str, Any]], folder: Path, *, number: int, noun: str
) -> None:
    """Compare the cards of all, and whether all see what number 0 writes into `folder`.

    Args:
        own: makes this one's card. It is called once the new file is seen: until then a network folder
            may show names as they were half a minute ago, and a stage that is done as new.
        number: which of them this one is.
        noun: what they are, "rank" or "machine".

    Raises:
        CheckpointError: they differ; everybody raises the same message.
    """
    with _token(folder, number) as token:
        sees = _appears(folder / gather(token)[0])
        cards = gather({**own(), "sees": sees, "folder": str(folder)})
    problems = [problem for i in range(1, len(cards)) for problem in _problems(cards, i, noun)]
    first = f"{noun} 0 ({cards[0]['host']})"
    problems += [
        f"{noun} {i} ({cards[i]['host']}) doesn't see what {first} writes into {cards[0]['folder']}: "
        "output_dir has to be in a folder that all machines share, under the same path"
        for i, other in enumerate(cards)
        if not other["sees"]
    ]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = [f"the {noun}s of this run differ; nothing was started", *problems[:_SHOWN], *more]
        raise CheckpointError("\n  ".join(lines))


def _problems(cards: Sequence[Mapping[str, Any]], i: int, noun: str) -> Iterator[str]:
    """Yield in which way card `i` isn't the first one."""
    first, other = cards[0], cards[i]
    place, there = f"{noun} {i} ({other['host']})", f"{noun} 0 ({first['host']})"
    different = False
    for package in {**first["versions"], **other["versions"]}:
        pair = [item["versions"].get(package, "missing") for item in (other, first)]
        if pair[0] != pair[1]:
            different = True
            yield f"{place}: {package} is {pair[0]}, and {pair[1]} on {there}: install the same everywhere"
    if not different and other["code"] != first["code"]:
        yield f"{place}: dualign's code isn't that of {there}: install the same commit everywhere"
    if [*other["stages"]] != [*first["stages"]]:
        yield f"{place}: has another recipe than {there}: start all with the same file"
        return
    for name, stage in other["stages"].items():
        if difference := _difference(stage, first["stages"][name], there):
            yield f"{place}: stage {name}: {difference}"


def _difference(stage: Mapping[str, Any], first: Mapping[str, Any], there: str) -> str:
    if stage["launch"] != first["launch"]:
        return f"launch isn't that of {there}: give all the same accelerate file and overrides"
    if stage["fingerprint"] != first["fingerprint"]:
        keys = [key for key, digest in stage["keys"].items() if digest != first["keys"].get(key)]
        what = f"{', '.join(keys)} of the recipe" if keys else "a file that it names (data, model)"
        return f"{what} isn't what {there} has: give all the same recipe, overrides and files"
    if stage["state"] != first["state"]:
        return (
            f"is {stage['state']} there, and {first['state']} on {there}: output_dir isn't shared"
        )
    return ""


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _launch(config: Any) -> str:
    """Return a digest of a stage's `launch`: of its keys, and of what is in its file."""
    return _digest(launch_settings(getattr(config, "launch", None)))


@cache
def _code() -> str:
    """Return a digest of dualign's modules: two checkouts may have one version."""
    digest = hashlib.sha256()
    for package in ("dualign", "dualign.sft", "dualign.preference", "dualign.merging"):
        spec = find_spec(package)
        folder = Path(spec.origin).parent if spec and spec.origin else None
        for file in sorted(folder.rglob("*.py")) if folder else ():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _token(folder: Path, number: int) -> Iterator[str]:
    """Give number 0 the name of a new file of its own in the folder, for as long as the block runs."""
    if number:
        yield ""
        return
    new = not folder.exists()
    file = folder / f".roll-call-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise CheckpointError(f"{folder}: can't be written ({error.strerror})") from None
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)
        with suppress(OSError):
            if new:
                folder.rmdir()


def _appears(file: Path) -> bool:
    """Return whether a file that another host has made is seen here, sooner or later."""
    end = time.monotonic() + _SECONDS
    while not file.exists():
        if time.monotonic() > end:
            return False
        with suppress(OSError):
            os.listdir(file.parent)  # noqa: PTH208 - asks the server of a network folder again
        time.sleep(0.1)
    return True
