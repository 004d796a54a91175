"""The whole road: a finished run -> the hub -> someone else, who has torch, transformers, peft and the card."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.hub.api import Person
from tests.hub.client import ROOT, Done, call, environment
from tests.hub.server import Hub, running_hub
from tests.hub.store import Repo
from tests.publish.empty_environment import empty_environment

TOKEN = "hf_of_the_road_test"
IN_BOTH_MODES = ["one and two", "</think>", "", "3", "3"]  # to "What is 1+2?"
BASE_CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    people = {TOKEN: Person(name="ada")}
    with running_hub(tmp_path_factory.mktemp("hub"), people) as running:
        yield running


@pytest.fixture(scope="module")
def base(hub: Hub, road: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the pipeline started from, on the hub: ID@COMMIT."""
    folder = road.parent / "base"
    (folder / "README.md").write_text(BASE_CARD)
    env = environment(hub.url, tmp_path_factory.mktemp("home"), TOKEN)
    asked = {"repo_id": "ada/base", "private": False, "message": "Base"}
    done = call(env, "upload", folder=folder, **asked)
    return f"ada/base@{done.told['commit']}"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_environment(
        tmp_path_factory.mktemp("empty"), "torch", "transformers", "peft", "setuptools"
    )


def run(hub: Hub, home: Path, run_dir: Path, repo_id: str, *options: str) -> Done:
    """`dualign publish` as a user runs it."""
    command = [sys.executable, "-m", "dualign", "publish", str(run_dir), repo_id, *options]
    licences = [f"--license-of={name}=apache-2.0" for name in ("train", "pairs")]
    done = subprocess.run(
        [*command, *licences],
        cwd=home,
        env=environment(hub.url, home, TOKEN, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    return Done(status=done.returncode, out=done.stdout, err=done.stderr)


def published(hub: Hub, home: Path, run_dir: Path, repo_id: str, *options: str) -> Repo:
    done = run(hub, home, run_dir, repo_id, *options, "--yes")
    assert done.status == 0, done.out + done.err
    repo = hub.store.repos[repo_id]
    assert f"published: {hub.url}/{repo_id} at {repo.head.oid}" in done.out
    return repo


def card_of(hub: Hub, repo_id: str) -> str:
    """README.md as the hub gives it to someone who may see it."""
    address = f"{hub.url}/{repo_id}/resolve/main/README.md"
    with urlopen(Request(address, headers={"Authorization": f"Bearer {TOKEN}"})) as answer:
        return answer.read().decode()


def follow(card: str, python: Path, hub: Hub, home: Path) -> list[list[str]]:
    """Run every Python snippet of the card in the empty environment; what each printed, by lines."""
    home.mkdir()
    printed = []
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        done = subprocess.run(
            [python, "-c", code],
            cwd=home,
            env=environment(hub.url, home, TOKEN),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        printed.append(done.stdout.splitlines())
    return printed


def test_an_adapter_is_used_by_following_its_card_alone(
    hub: Hub, road: Path, base: str, python: Path, tmp_path: Path
) -> None:
    """The card's question is one of the four sums that the model knows by heart."""
    repo = published(hub, tmp_path, road / "apo", "ada/adapter", "--base", base)
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
    base: str,
    python: Path,
    tmp_path: Path,
    stage: str,
    options: tuple[str, ...],
    snippets: int,
) -> None:
    published(hub, tmp_path, road / stage, "ada/weights", "--base", base, "--public", *options)
    answers = follow(card_of(hub, "ada/weights"), python, hub, tmp_path / "someone else")
    assert answers == [IN_BOTH_MODES] * snippets
    del hub.store.repos["ada/weights"]


@pytest.mark.slow
def test_a_dry_run_leaves_the_hub_alone_and_a_second_publication_keeps_what_users_wrote(
    hub: Hub, road: Path, base: str, tmp_path: Path
) -> None:
    before = hub.state()
    done = run(hub, tmp_path, road / "merged", "ada/again", "--base", base)
    assert done.status == 0, done.out + done.err
    assert "nothing has left" in done.out
    assert hub.state() == before
    published(hub, tmp_path, road / "merged", "ada/again", "--base", base)
    card = card_of(hub, "ada/again") + "\n## Thanks\n\nTo all who helped.\n"
    hub.store.someone_commits("ada/again", "README.md", card)
    hub.store.someone_commits("ada/again", "notes.md", "mine")
    hub.seen.clear()
    repo = published(hub, tmp_path, road / "merged", "ada/again", "--base", base)
    assert hub.bytes_to_storage() == 0
    assert "To all who helped." in card_of(hub, "ada/again")
    assert "notes.md" in repo.head.files


@pytest.mark.slow
def test_a_full_disk_midway_is_told_and_leaves_the_hub_as_it_was(
    hub: Hub, road: Path, base: str, tmp_path: Path
) -> None:
    before = hub.state()
    hub.store.room = 100_000
    done = run(hub, tmp_path, road / "merged", "ada/full", "--base", base, "--yes")
    hub.store.room = None
    assert done.status == 2
    assert "error: ada/full: sending the large files: the Hub answered 507" in done.err
    assert "Traceback" not in done.err
    assert hub.state() == before
