"""Each way an input can be wrong: its message, and that nothing is left behind."""

from pathlib import Path

import pytest

from dualign.errors import DualignError
from dualign.merging.mergekit.load import load
from dualign.merging.output import merge_into
from tests.checkpoints.folders import write_model

from .bad_inputs import CASES, TEXT, attempt, page


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_refused_by_file_and_nothing_is_left(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DualignError, match=CASES[case][1]):
        attempt(case, tmp_path)
    assert not list(tmp_path.glob("*out*"))


def test_the_page_of_messages_holds_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(CASES) >= 60
    written = Path(__file__).parents[2] / "docs" / "merging-errors.md"
    assert written.read_text() == page(), (
        "python -m tests.merging.bad_inputs > docs/merging-errors.md"
    )


def test_a_disk_without_room_is_seen_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    write_model(tmp_path / "a", 1)
    write_model(tmp_path / "b", 2)
    (tmp_path / "merge.yml").write_text(TEXT)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(DualignError, match=r"0.00 GB free; make room first"):
        merge_into(load(tmp_path / "merge.yml"), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_links_within_the_hub_cache_are_followed(tmp_path: Path) -> None:
    home = tmp_path / "models--org--name"
    snapshot = write_model(home / "snapshots" / "abc", 1)
    (home / "blobs").mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(home / "blobs" / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    (tmp_path / "merge.yml").write_text(
        f"merge_method: passthrough\nmodels: [{{model: {snapshot}}}]\n"
    )
    merge_into(load(tmp_path / "merge.yml"), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
