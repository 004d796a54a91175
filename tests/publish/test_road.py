"""The whole road: a finished run -> the hub -> someone else, who has torch, transformers, peft and the card."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.publish.empty_environment import empty_environment
from tests.publish.following import TOKEN, card_of, follow, published, run
from tests.publish.hub.api import Person
from tests.publish.hub.client import call, environment
from tests.publish.hub.server import Hub, running_hub

IN_BOTH_MODES = ["one and two", "</think>", "", "3", "3"]  # to "What is 1+2?"
BASE_CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    people = {TOKEN: Person(name="ada")}
    with running_hub(tmp_path_factory.mktemp("hub"), people) as running:
        yield running


@pytest.fixture(scope="module")
def said(hub: Hub, road: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the records don't say: the base on the hub, and the licenses of the rows."""
    folder = tmp_path_factory.mktemp("hub-base") / "base"
    shutil.copytree(road.parent / "base", folder)
    (folder / "README.md").write_text(BASE_CARD)
    env = environment(hub.url, tmp_path_factory.mktemp("home"), TOKEN)
    asked = {"repo_id": "ada/base", "private": False, "message": "Base"}
    done = call(env, "upload", folder=folder, **asked)
    licenses = [f"--license-of={name}=apache-2.0" for name in ("train", "pairs")]
    return ["--base", f"ada/base@{done.told['commit']}", *licenses]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_environment(tmp_path_factory.mktemp("empty"), "torch", "transformers", "peft")


def test_an_adapter_is_used_by_following_its_card_alone(
    hub: Hub, road: Path, said: list[str], python: Path, tmp_path: Path
) -> None:
    """The card's question is one of the four sums that the model knows by heart."""
    repo = published(hub, tmp_path, road / "apo", "ada/adapter", *said)
    assert repo.private
    assert len(repo.commits) == 2
    kept = [path for path in road.rglob("*") if path.is_file()]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]
    answers = follow(card_of(hub, "ada/adapter"), python, hub, tmp_path / "someone else")
    assert answers == [IN_BOTH_MODES]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "options", "snippets"),
    [("merged", (), 1), ("folded", ("--what", "both"), 2), ("apo", ("--what", "weights"), 1)],
    ids=["a merge", "weights and adapter", "weights folded for it"],
)
def test_weights_are_used_by_following_their_card_alone(
    hub: Hub,
    road: Path,
    said: list[str],
    python: Path,
    tmp_path: Path,
    stage: str,
    options: tuple[str, ...],
    snippets: int,
) -> None:
    published(hub, tmp_path, road / stage, "ada/weights", *said, "--public", *options)
    answers = follow(card_of(hub, "ada/weights"), python, hub, tmp_path / "someone else")
    assert answers == [IN_BOTH_MODES] * snippets
    del hub.store.repos["ada/weights"]


@pytest.mark.slow
def test_a_dry_run_leaves_the_hub_alone_and_a_second_publication_keeps_what_users_wrote(
    hub: Hub, road: Path, said: list[str], tmp_path: Path
) -> None:
    before = hub.state()
    done = run(hub, tmp_path, road / "merged", "ada/again", *said)
    assert done.status == 0, done.out + done.err
    assert "nothing has left" in done.out
    assert hub.state() == before
    published(hub, tmp_path, road / "merged", "ada/again", *said)
    card = card_of(hub, "ada/again") + "\n## Thanks\n\nTo all who helped.\n"
    hub.store.someone_commits("ada/again", "README.md", card)
    hub.store.someone_commits("ada/again", "notes.md", "mine")
    hub.seen.clear()
    repo = published(hub, tmp_path, road / "merged", "ada/again", *said)
    assert hub.bytes_to_storage() == 0
    assert "To all who helped." in card_of(hub, "ada/again")
    assert "notes.md" in repo.head.files


@pytest.mark.slow
def test_a_full_disk_midway_is_told_and_leaves_the_hub_as_it_was(
    hub: Hub, road: Path, said: list[str], tmp_path: Path
) -> None:
    before = hub.state()
    # The tests above may have sent these weights, and what the Hub has isn't sent again.
    large = hub.store.root / "large"
    aside = large.rename(hub.store.root / "aside")
    hub.store.room = 100_000
    done = run(hub, tmp_path, road / "merged", "ada/full", *said, "--yes")
    hub.store.room = None
    shutil.rmtree(large, ignore_errors=True)
    aside.rename(large)
    assert done.status == 2
    assert "error: ada/full: sending the large files: the Hub answered 507" in done.err
    assert "Traceback" not in done.err
    assert hub.state() == before
