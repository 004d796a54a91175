"""The stage that runs the user's own Python script, such as one that writes the data."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dualign.errors import DataError
from dualign.rundir import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptStage:
    """`python SCRIPT --out RUN_DIR --seed SEED --KEY VALUE ...`; its files are the run directory."""

    name: str
    """names the stage and its run directory"""
    script: str
    """a Python file, relative to the recipe"""
    kind: Literal["script"] = "script"
    """what the stage does"""
    args: Mapping[str, str | int | float] = field(default_factory=dict)
    """given to the script as --KEY VALUE"""
    files: tuple[str, ...] = ()
    """other files that the script reads: a change in one of them redoes the stage"""


def run(stage: ScriptStage, work: Path, *, seed: int) -> Outcome:
    """Run the script; its files in `work` become the stage's run directory.

    Raises:
        DataError: the script failed or wrote nothing.
    """
    command = [sys.executable, stage.script, "--out", str(work), "--seed", str(seed)]
    for key, value in stage.args.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise DataError(
            f"stage {stage.name}: {' '.join(command)} exited with {code}; its messages are above"
        )
    files = (path for path in sorted(work.rglob("*")) if path.is_file())
    sizes = {
        str(path.relative_to(work)): path.stat().st_size
        for path in files
        if not path.name.startswith(".")
    }
    if not sizes:
        raise DataError(f"stage {stage.name}: {stage.script} wrote nothing into --out {work}")
    return Outcome(metrics={"files": sizes})
