"""An output folder is complete or not there, and one process at a time writes it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dualign.errors import CheckpointError, DataError
from dualign.rundir import new_folder, require_new

HOLD = """
import sys
from pathlib import Path
from dualign.rundir import new_folder
with new_folder(Path(sys.argv[1]), fingerprint="first") as work:
    (work / "half").write_text("")
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes `out`; it is killed in the end, if it hasn't finished."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "held"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_has_its_name_when_the_block_has_ended_and_nothing_else_is_left(
    tmp_path: Path,
) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as work:
        (work / "file").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "whole"


def test_a_failed_block_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as work:
        (work / "file").write_text("old")
    for fingerprint in (None, "same"):
        with pytest.raises(DataError), new_folder(out, force=True, fingerprint=fingerprint) as work:
            (work / "file").write_text("new")
            raise DataError
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (out / "file").read_text() == "old"


def test_a_folder_that_holds_something_is_refused_with_what_to_do(tmp_path: Path) -> None:
    require_new(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"is there already; choose another folder$"):
        require_new(tmp_path)
    with pytest.raises(CheckpointError, match=r"choose another folder, or use --force$"):
        require_new(tmp_path, force=False)
    require_new(tmp_path, force=True)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    """A second merge into the same folder used to delete the first one's work before it was refused."""
    out = tmp_path / "out"
    with held(out) as process:
        expected = rf"out: another run is writing here \(process {process.pid} .*another folder"
        with (
            pytest.raises(CheckpointError, match=expected),
            new_folder(out, force=True, fingerprint="second"),
        ):
            pass
        assert (tmp_path / ".out.partial" / "half").is_file()
        process.communicate("go on\n")
    assert (out / "half").is_file()


def test_after_kill_9_work_of_the_same_fingerprint_is_continued_and_other_work_is_not(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with held(out):
        pass
    assert not out.exists()
    with (
        pytest.raises(KeyboardInterrupt),
        new_folder(out, fingerprint="first") as work,
    ):
        assert (work / "half").is_file()
        raise KeyboardInterrupt
    with new_folder(out, fingerprint="second") as work:
        assert not (work / "half").exists()
