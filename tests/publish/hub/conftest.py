"""A hub with three people on it, and folders as they are staged for publishing."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.publish.hub.api import Person
from tests.publish.hub.client import Done, Worker, call, environment
from tests.publish.hub.server import Hub, running_hub

CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n# A model\n"
REPO = "ada/model"


@pytest.fixture(scope="session")
def tokens() -> dict[str, str]:
    """Name -> token; no two runs have the same, so that finding one anywhere means that it leaked."""
    return {name: f"hf_{secrets.token_hex(17)}" for name in ("ada", "reader", "bob")}


@pytest.fixture(scope="session")
def listening(
    tmp_path_factory: pytest.TempPathFactory, tokens: dict[str, str]
) -> Iterator[tuple[Hub, Worker]]:
    people = {
        tokens["ada"]: Person(name="ada", orgs=("lab",)),
        tokens["reader"]: Person(name="ada", role="read"),
        tokens["bob"]: Person(name="bob", reads=("lab",)),
    }
    root = tmp_path_factory.mktemp("hub")
    with running_hub(root / "0", people, part_size=1_000_000) as hub:
        worker = Worker(environment(hub.url, tmp_path_factory.mktemp("home")))
        yield hub, worker
        worker.stop()


@pytest.fixture
def hub(listening: tuple[Hub, Worker], tmp_path: Path) -> Hub:
    """Empty for each test, at one address."""
    hub = listening[0]
    hub.begin(tmp_path / "hub")
    return hub


class Machine:
    """Where a user publishes from."""

    def __init__(self, hub: Hub, worker: Worker, home: Path, token: str) -> None:
        self.hub, self.home, self.token, self._worker = hub, home, token, worker

    def env(self, **more: str) -> dict[str, str]:
        """Of a process of its own, with a home that nothing else has used."""
        return environment(self.hub.url, self.home, self.token, **more)

    def upload(self, folder: Path, repo_id: str = REPO, **asked: Any) -> Done:
        asked = {"private": True, "message": "Publish", **asked}
        return self._worker.call(
            self.token, "upload", folder=folder.resolve(), repo_id=repo_id, **asked
        )

    def join(self, collection: str, repo_id: str = REPO, **asked: Any) -> Done:
        asked = {"kind": "model", "private": True, **asked}
        return self._worker.call(
            self.token, "join_collection", collection=collection, repo_id=repo_id, **asked
        )

    def upload_alone(self, folder: Path) -> Done:
        asked = {"repo_id": REPO, "private": True, "message": "Publish"}
        return call(self.env(), "upload", folder=folder, **asked)

    def state(self, repo_id: str = REPO) -> Done:
        return self._worker.call(self.token, "remote_state", repo_id=repo_id)

    def state_alone(self, **more: str) -> Done:
        return call(self.env(**more), "remote_state", repo_id=REPO)


@pytest.fixture
def machine(
    hub: Hub, listening: tuple[Hub, Worker], tmp_path: Path, tokens: dict[str, str]
) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(hub, listening[1], home, tokens["ada"])


@pytest.fixture
def bob(hub: Hub, listening: tuple[Hub, Worker], tmp_path: Path, tokens: dict[str, str]) -> Machine:
    """Someone else's machine: ada's repositories aren't his, and in the lab he may only read."""
    return Machine(hub, listening[1], tmp_path, tokens["bob"])


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """Small and large files, one of them in a folder."""
    folder = tmp_path / "staged"
    (folder / "plots").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}\n")
    (folder / "plots" / "loss.png").write_bytes(b"\x89PNG\0" + bytes(range(256)))
    (folder / "model.safetensors").write_bytes(secrets.token_bytes(300_000))
    return folder
