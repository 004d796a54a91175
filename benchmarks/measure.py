"""What a process takes: seconds, CPU seconds, anonymous memory."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took."""

    wall: float
    cpu: float
    anonymous_mb: float
    inside: float | None = None
    """seconds that the process measured itself, without imports"""


def measure(command: Sequence[str], **environment: str) -> Run:
    """Run it, then `sync`; sample its anonymous memory every 10 ms."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", **environment}
    os.sync()  # what ran before isn't this one's
    before = os.times()
    clock = time.monotonic()
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, anonymous_mb(status))
        time.sleep(0.01)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    os.sync()
    wall = time.monotonic() - clock
    cpu = sum(os.times()[2:4]) - sum(before[2:4])
    inside = [float(line.split()[1]) for line in said.splitlines() if line.startswith("seconds ")]
    return Run(wall, cpu, peak, inside[0] if inside else None)


def idle_mb() -> float:
    """The anonymous memory of an interpreter that does nothing."""
    return measure([sys.executable, "-c", "import time; time.sleep(0.5)"]).anonymous_mb


def anonymous_mb(status: Path) -> float:
    """RssAnon of a process; 0 when it has ended."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)
