"""Progress: a bar on a terminal, lines in a log, silence where it is quick."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dualign import terminal
from dualign.terminal import progress


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is shown without delay."""
    monkeypatch.setattr(terminal, "_SECONDS", 0)


def lines(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **settings: object) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    with progress(3, "asking", **settings) as bar:
        for _ in range(3):
            bar.update()
    return stream.getvalue()


@pytest.mark.usefixtures("at_once")
def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = lines(monkeypatch, io.StringIO(), unit="answer")
    assert "asking: 3 of 3 answers, 00:00 so far" in printed
    assert printed.endswith("\n") and "\r" not in printed and "%" not in printed


@pytest.mark.usefixtures("at_once")
def test_lines_come_although_bars_of_libraries_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert "asking: 3 of 3 answer" in lines(monkeypatch, io.StringIO(), unit="answer")


@pytest.mark.usefixtures("at_once")
def test_silent_work_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, io.StringIO(), silent=True) == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Tty()], ids=["log", "terminal"])
def test_what_is_quick_prints_nothing(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr(terminal, "_SECONDS", 10**6)  # however slow this machine is
    printed = lines(monkeypatch, stream)
    assert "\n" not in printed.strip()
    assert printed == "" or isinstance(stream, Tty)


def test_a_command_turns_the_bars_of_libraries_off_where_stderr_is_no_terminal() -> None:
    code = (
        "from dualign.cli.main import main\n"
        "main(['recipes', 'list'])\n"
        "from tqdm.auto import tqdm\n"
        "import os\n"
        "for _ in tqdm(range(3)): pass\n"
        "print(os.environ['HF_HUB_DISABLE_PROGRESS_BARS'], os.environ['HF_DATASETS_DISABLE_PROGRESS_BARS'])"
    )
    kept = {name: text for name, text in os.environ.items() if "DISABLE" not in name}
    environment = {**kept, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.endswith("1 1\n")


def test_an_export_holds_bars_of_libraries_back_on_a_terminal() -> None:
    code = (
        "from dualign.cli.main import main\n"
        "main(['export', 'x', 'x.gguf'])  # refused before torch is imported\n"
        "from tqdm import tqdm\n"
        "for _ in tqdm(range(3), desc='Loading weights', ncols=80): pass\n"
        "from dualign import terminal\n"
        "terminal._DELAY = 0\n"
        "with terminal.progress(3, 'ours', unit='answer') as bar: bar.update(3)\n"
    )
    kept = {name: text for name, text in os.environ.items() if "DISABLE" not in name}
    environment = {**kept, "PYTHONPATH": str(Path(__file__).parents[1])}
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    subprocess.run([sys.executable, "-c", code], env=environment, stderr=slave, check=True)
    shown = os.read(master, 10_000).decode()
    assert "ours: 100%" in shown and "Loading weights" not in shown
