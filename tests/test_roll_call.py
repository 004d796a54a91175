"""Who isn't what number 0 is gets named, by all, before anything is written."""

import copy
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dualign import engine, roll_call
from dualign.errors import CheckpointError
from dualign.recipe import load_recipe
from dualign.roll_call import call_roll, card


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """The card of a recipe of one stage, with a launcher."""
    (tmp_path / "zero.yaml").write_text("num_processes: 2")
    (tmp_path / "rows.jsonl").write_text("{}")
    recipe = tmp_path / "recipe.yaml"
    stage = {"kind": "sft", "name": "sft", "model": "m", "launch": "zero.yaml"}
    recipe.write_text(
        json.dumps({**stage, "data": {"sources": [{"path": "rows.jsonl"}]}, "output_dir": "out"})
    )

    def read() -> dict[str, Any]:
        return card(engine.statuses(load_recipe(recipe, []), remember=False))

    before = read()
    (tmp_path / "zero.yaml").write_text("num_processes: 4")
    assert read()["stages"]["sft"]["launch"] != before["stages"]["sft"]["launch"]
    (tmp_path / "zero.yaml").write_text("num_processes: 2")
    (tmp_path / "rows.jsonl").write_text('{"a": 1}')
    assert read()["stages"]["sft"]["fingerprint"] != before["stages"]["sft"]["fingerprint"]
    (tmp_path / "rows.jsonl").write_text("{}")
    assert read() == before
    return before


def called(
    cards: list[dict[str, Any]],
    folders: list[Path],
    noun: str = "rank",
    make: Callable[[dict[str, Any]], dict[str, Any]] = copy.copy,
) -> set[str]:
    """What each says at the end; all in threads of their own."""
    meet, given = threading.Barrier(len(cards)), [None] * len(cards)

    def call(number: int) -> str:
        def gather(value: Any) -> list[Any]:
            given[number] = value
            meet.wait()
            values = list(given)
            meet.wait()
            return values

        try:
            own = partial(make, cards[number])
            call_roll(gather, own, folders[number], number=number, noun=noun)
        except CheckpointError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(cards)) as pool:
        return {*pool.map(call, range(len(cards)))}


def test_equals_go_on_and_leave_nothing(own: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    assert called([own, own, own], [folder] * 3) == {""}
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "sft").mkdir()
    assert called([own, own], [folder] * 2) == {""}
    assert [item.name for item in folder.iterdir()] == ["sft"]


def other_torch(card: dict[str, Any]) -> None:
    card["versions"]["torch"] = "2.0.0"
    card["code"] = "other"  # another package explains enough


def without_peft(card: dict[str, Any]) -> None:
    del card["versions"]["peft"]


def other_code(card: dict[str, Any]) -> None:
    card["code"] = "other"


def other_file(card: dict[str, Any]) -> None:
    card["stages"]["sft"]["fingerprint"] = "other"


def other_key(card: dict[str, Any]) -> None:
    other_file(card)
    card["stages"]["sft"]["keys"]["train"] = "other"


def other_launch(card: dict[str, Any]) -> None:
    card["stages"]["sft"]["launch"] = "other"


def other_state(card: dict[str, Any]) -> None:
    card["stages"]["sft"]["state"] = "done"


def other_stages(card: dict[str, Any]) -> None:
    card["stages"] = {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_torch, "torch is 2.0.0, and "),
        (without_peft, "peft is missing, and "),
        (other_code, "dualign's code isn't that of machine 0 (a): install the same commit"),
        (other_file, "stage sft: a file that it names (data, model) isn't what machine 0 (a) has"),
        (other_key, "stage sft: train of the recipe isn't what machine 0 (a) has"),
        (other_launch, "stage sft: launch isn't that of machine 0 (a)"),
        (
            other_state,
            "stage sft: is done there, and new on machine 0 (a): output_dir isn't shared",
        ),
        (other_stages, "has another recipe than machine 0 (a)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_who_has_something_else_is_named(
    own: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    first, other = {**own, "host": "a"}, {**copy.deepcopy(own), "host": "b"}
    change(other)
    (said,) = called([first, first, other], [tmp_path] * 3, "machine")
    assert said.startswith(
        "the machines of this run differ; nothing was started\n  machine 2 (b): "
    )
    assert words in said
    assert said.count("\n") == 1, "each difference once"


def test_a_folder_that_is_not_shared_is_named(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "_SECONDS", 0.2)
    here, there = tmp_path / "here", tmp_path / "there"
    (said,) = called([own, own], [here, there])
    assert f"doesn't see what rank 0 ({own['host']}) writes into " in said
    assert "output_dir has to be in a folder that all machines share" in said
    assert not here.exists() and not there.exists()


def test_stages_are_read_once_the_folder_is_as_it_is_now(
    own: dict[str, Any], tmp_path: Path
) -> None:
    """Until a new name is seen, a network folder may show a stage that has just ended as new."""

    def make(card: dict[str, Any]) -> dict[str, Any]:
        assert list(tmp_path.glob(".roll-call-*"))
        return card

    assert called([own, own], [tmp_path] * 2, make=make) == {""}


def test_a_thousand_differences_are_a_few_lines(own: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(own)
    other_code(other)
    (said,) = called([own, *[other] * 20], [tmp_path] * 21)
    assert said.count("\n") == 9 and said.endswith("and 12 more")


def test_a_folder_that_cannot_be_written_is_said(own: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/out: can't be written"):
        call_roll(
            lambda value: [value], lambda: own, tmp_path / "file" / "out", number=0, noun="rank"
        )
