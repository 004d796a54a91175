"""What a work folder says of an unfinished stage."""

import json
import logging
from pathlib import Path

import pytest

from dualign.progress import Progress, ProgressNotes, read_progress
from dualign.rundir import PROGRESS, finalize, open_work


def test_the_rest_takes_as_long_as_what_this_process_did() -> None:
    progress = Progress(unit="step", done=120, total=400, earlier=100, seconds=10)
    assert progress.seconds_left == 140
    assert progress.count == "step 120 of 400"
    assert Progress(unit="step", done=100, total=400, earlier=100, seconds=9).seconds_left is None
    asked = Progress(unit="answer", done=12, total=80, seconds=1, doing="answers of sft")
    assert asked.count == "answers of sft: 12 of 80"


def test_speed_and_memory_stand_apart_from_the_log() -> None:
    figures = {"loss": 0.5, "tokens_per_second": 1234.4, "memory_mb": 2048}
    progress = Progress(unit="step", done=1, total=2, seconds=1, figures=figures)
    assert progress.logged() == {"loss": 0.5}
    assert progress.measured() == {"Tokens a second": "1,234", "Memory, peak": "2.00 GiB"}


def test_notes_are_rare_and_go_with_the_work_folder(tmp_path: Path) -> None:
    work, _ = open_work(tmp_path / "sft", "abc")
    notes = ProgressNotes(work, unit="step", total=1000)
    for step in range(1, 1001):
        notes.note(step)
    assert json.loads((work / PROGRESS).read_text())["done"] < 1000, "not each of them"
    notes.note(1000, at_once=True)
    progress = read_progress(work)
    assert progress is not None and progress.done == 1000
    finalize(work, tmp_path / "sft")
    assert not (tmp_path / "sft" / PROGRESS).exists()


def test_only_work_folders_of_stages_get_notes(tmp_path: Path) -> None:
    ProgressNotes(tmp_path, unit="step", total=1).note(1, at_once=True)
    assert not [*tmp_path.iterdir()]
    assert read_progress(tmp_path) is None
    (tmp_path / PROGRESS).write_text('{"unit": "step"')
    assert read_progress(tmp_path) is None


def test_a_note_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work, _ = open_work(tmp_path / "sft", "abc")
    (work / PROGRESS).mkdir()
    notes = ProgressNotes(work, unit="step", total=9)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            notes.note(step, at_once=True)
    assert caplog.text.count("how far the stage is can't be noted") == 1
