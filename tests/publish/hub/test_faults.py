"""What can go wrong between a user and the Hub: tried again, or told in words that help, with nothing half-published."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.publish.hub.client import start
from tests.publish.hub.conftest import CARD, REPO, Machine
from tests.publish.hub.server import Hub
from tests.publish.hub.store import Stored

SOON = {"Retry-After": "0"}


@pytest.fixture(params=["new", "existing"])
def there(request: pytest.FixtureRequest, hub: Hub) -> str:
    """Whether the repository was there before; most faults leave other things behind when it wasn't."""
    if request.param == "existing":
        hub.store.create(REPO, private=True)
        hub.store.someone_commits(REPO, "README.md", CARD)
    return str(request.param)


ONCE = [
    ("POST .*/commit/", {"status": 503}),
    ("POST .*/commit/", {"lose_answer": True}),
    ("PUT /large/", {"cut_after": 1000}),
    ("POST /api/repos/create", {"lose_answer": True}),
    ("POST /api/validate-yaml", {"status": 503, "headers": SOON}),
    ("GET /api/models/ada/model$", {"status": 500, "headers": SOON}),
]
ONCE_SLOWLY = [  # each waits for a second
    ("POST .*/commit/", {"status": 429, "headers": {"Retry-After": "1"}}),
    ("POST .*/commit/", {"cut_after": 20}),
    ("POST .*/preupload/", {"status": 500}),
    ("POST .*/objects/batch", {"status": 502}),
    ("POST .*/objects/verify", {"cut_after": 1}),
    ("PUT /large/", {"status": 500}),
    ("PUT /large/", {"lose_answer": True}),
    ("POST /api/repos/create", {"status": 504}),
    ("GET .*/tree/", {"status": 503}),
]


@pytest.mark.parametrize(
    ("on", "what"),
    [*ONCE, *(pytest.param(*item, marks=pytest.mark.slow) for item in ONCE_SLOWLY)],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_what_fails_once_is_tried_again_and_published_once(
    hub: Hub, machine: Machine, staged: Path, on: str, what: dict[str, Any]
) -> None:
    hub.plan(on, **what)
    done = machine.upload(staged)
    assert done.status == 0, done.err
    assert not hub.faults[0].times, "it happened"
    repo = hub.store.repos[REPO]
    assert len(repo.commits) == 2
    assert set(repo.head.files) >= {"README.md", "plots/loss.png", "model.safetensors"}
    assert done.told["commit"] == repo.head.oid


@pytest.mark.parametrize("told", [{"Retry-After": "2"}, {"RateLimit": '"api";r=0;t=1'}], ids=list)
def test_the_time_that_the_hub_asks_for_is_waited(
    hub: Hub, machine: Machine, staged: Path, told: dict[str, str]
) -> None:
    """RateLimit counts whole seconds, so one more is waited."""
    hub.plan("POST .*/commit/", status=429, headers=told, say=f"slow down, {machine.token}")
    started = time.monotonic()
    done = machine.upload(staged)
    assert time.monotonic() - started > 2
    assert "the Hub answered 429 (slow down, <token>); trying again in 2 s" in done.err
    assert done.status == 0


@pytest.mark.parametrize(
    ("on", "what", "words"),
    [
        ("POST .*/commit/", {"status": 403}, "committing: the Hub answered 403"),
        ("POST .*/commit/", {"status": 413}, "this is more than it takes at once"),
        ("POST .*/commit/", {"status": 402}, "payment required"),
        ("POST .*/commit/", {"status": 400}, "committing: the Hub answered 400"),
        ("POST .*/preupload/", {"status": 403}, "sending the large files: the Hub answered 403"),
        ("POST .*/objects/batch", {"status": 404}, "deleted, renamed or closed meanwhile"),
        ("PUT /large/", {"status": 507}, "no room left: run this again later"),
        ("POST /large/|POST .*/verify", {"status": 404}, "sending the large files"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value.values())),
)
def test_a_refusal_is_told_and_the_hub_is_as_it_was(
    hub: Hub, machine: Machine, staged: Path, there: str, on: str, what: dict[str, Any], words: str
) -> None:
    before = hub.state()
    hub.plan(on, **what)
    done = machine.upload(staged)
    assert done.status == 2
    assert not hub.faults[0].times, "it happened"
    assert f"error: {REPO}: " in done.err
    assert words in done.err
    assert "planned by the test" in done.err
    assert "Traceback" not in done.err
    assert hub.state() == before
    left = {"new": "deleted again", "existing": "The repository is as it was"}[there]
    assert left in done.err


@pytest.mark.parametrize("room", [100, 310_000], ids=["large files", "commit"])
def test_a_full_disk_on_the_server_publishes_nothing(
    hub: Hub, machine: Machine, staged: Path, there: str, room: int
) -> None:
    before = hub.state()
    (staged / "tokenizer.json").write_text("x" * 50_000)
    hub.store.room = room
    done = machine.upload(staged)
    assert done.status == 2
    assert "507 (Insufficient Storage: the disk is full): it has no room left" in done.err
    assert hub.state() == before


def test_a_hub_in_lasting_trouble_leaves_an_empty_repository_to_go_on_from(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    hub.plan("POST .*/commit/", status=503, headers=SOON, times=5)
    done = machine.upload(staged)
    assert done.status == 2
    assert "committing: the Hub answered 503 (planned by the test): it is in trouble" in done.err
    assert f"{hub.url}/{REPO} was made and is empty; the same command goes on" in done.err
    repo = hub.store.repos[REPO]
    assert repo.private
    assert set(repo.head.files) == {".gitattributes"}
    hub.seen.clear()
    assert machine.upload(staged).status == 0
    assert hub.bytes_to_storage() == 0
    assert "model.safetensors" in hub.store.repos[REPO].head.files


def test_a_repository_that_cannot_be_deleted_again_is_named(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    hub.plan("POST .*/commit/", status=403)
    hub.plan("DELETE /api/repos/delete", status=403)
    done = machine.upload(staged)
    assert f"couldn't be deleted again: delete it at {hub.url}/{REPO}/settings" in done.err
    assert set(hub.store.repos[REPO].head.files) == {".gitattributes"}


def test_a_repository_that_someone_else_began_to_use_is_not_deleted(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    hub.plan("POST .*/commit/", status=403, before=lambda: hub.store.someone_commits(REPO))
    done = machine.upload(staged)
    assert "someone has committed to it since: it was left" in done.err
    assert "notes.md" in hub.store.repos[REPO].head.files


def test_a_commit_of_someone_else_in_between_is_not_overwritten(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    hub.store.create(REPO, private=True)
    hub.plan("POST .*/commit/", before=lambda: hub.store.someone_commits(REPO, "README.md", CARD))
    done = machine.upload(staged)
    assert "answered 412 (A commit has happened since" in done.err
    assert f"someone else committed to {REPO} meanwhile" in done.err
    assert set(hub.store.repos[REPO].head.files) == {".gitattributes", "README.md"}


def test_a_commit_since_the_caller_looked_is_an_error_before_anything_is_sent(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    looked_at = hub.store.create(REPO, private=True).head.oid
    hub.store.someone_commits(REPO)
    done = machine.upload(staged, head=looked_at)
    assert "someone committed meanwhile" in done.err
    assert f"was {looked_at[:8]}; nothing was sent" in done.err
    assert hub.bytes_to_storage() == 0


def test_a_card_that_the_hub_refuses_is_told_before_anything_is_sent(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    (staged / "README.md").write_text("---\nlicense: my own\n---\n")
    done = machine.upload(staged)
    assert "the Hub refuses the card (README.md)" in done.err
    assert "license" in done.err
    assert "nothing was sent" in done.err
    assert hub.bytes_to_storage() == 0
    assert not hub.state()


def test_other_bytes_on_the_hub_than_were_sent_are_an_error(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    def spoil() -> None:
        repo = hub.store.repos[REPO]
        other = {**repo.head.files, "config.json": Stored(size=3, blob="0" * 40)}
        spoilt = replace(repo.head, files=MappingProxyType(other))
        hub.store.repos[REPO] = replace(repo, commits=(*repo.commits[:-1], spoilt))

    hub.plan("GET .*/tree/", before=spoil)
    assert "holds other bytes than were sent in config.json" in machine.upload(staged).err


class TestWho:
    """Tokens and names."""

    def test_no_token(self, hub: Hub, machine: Machine) -> None:
        machine.token = ""
        done = machine.state()
        assert done.status == 2
        assert "no token for the Hub: run `hf auth login`" in done.err
        assert not hub.seen

    def test_an_unknown_token(self, machine: Machine) -> None:
        machine.token = "hf_" + "0" * 34
        done = machine.state()
        assert "answered 401" in done.err
        assert "it doesn't know your token" in done.err
        assert "0" * 34 not in done.err

    def test_a_token_that_may_only_read(
        self, hub: Hub, machine: Machine, staged: Path, there: str, tokens: dict[str, str]
    ) -> None:
        machine.token = tokens["reader"]
        assert machine.state().told["writable"] is False
        before = hub.state()
        assert "token may not write to" in machine.upload(staged).err
        assert hub.state() == before
        assert hub.bytes_to_storage() == 0

    def test_the_name_of_someone_else(self, hub: Hub, machine: Machine, staged: Path) -> None:
        done = machine.upload(staged, repo_id="bob/model")
        assert "ada's token may not write to" in done.err
        assert "publish under ada/" in done.err
        assert not hub.state()

    def test_a_public_repository_of_someone_else(self, hub: Hub, machine: Machine) -> None:
        hub.store.create("bob/open", private=False)
        told = machine.state("bob/open").told
        assert (told["exists"], told["writable"]) == (True, False)

    def test_a_private_repository_of_someone_else_looks_like_none(
        self, hub: Hub, machine: Machine
    ) -> None:
        hub.store.create("bob/closed", private=True)
        told = machine.state("bob/closed").told
        assert (told["exists"], told["writable"]) == (False, False)

    @pytest.mark.parametrize(
        ("name", "words"),
        [("model", "say whose it is: NAME/model"), ("a b/c", "not a repository's name")],
    )
    def test_a_name_that_cannot_be_one(self, machine: Machine, name: str, words: str) -> None:
        assert words in machine.state(name).err

    def test_who_it_is_is_asked_once_and_again_when_told_to_wait(
        self, hub: Hub, machine: Machine, staged: Path
    ) -> None:
        hub.plan("GET /api/whoami-v2", status=429, headers=SOON)
        assert machine.upload_alone(staged).status == 0
        assert [request.status for request in hub.requests("GET /api/whoami-v2")] == [429, 200]


class TestNetwork:
    def test_no_hub_at_that_address(self, machine: Machine) -> None:
        done = machine.state_alone(HF_ENDPOINT="http://127.0.0.1:9")
        assert done.status == 2
        assert "the Hub can't be reached" in done.err
        assert "check the network, and HF_ENDPOINT" in done.err

    def test_offline_mode(self, machine: Machine) -> None:
        assert "unset it to publish" in machine.state_alone(HF_HUB_OFFLINE="1").err


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_process_that_is_stopped_midway_has_published_nothing_and_a_second_goes_on(
    hub: Hub, machine: Machine, staged: Path, kill: signal.Signals
) -> None:
    hub.plan("POST .*/commit/", hold=True)
    asked = {"folder": staged, "repo_id": REPO, "private": True, "message": "Publish"}
    process = start(machine.env(), "upload", **asked)
    while hub.faults[0].times and process.poll() is None:  # the commit hasn't come yet
        time.sleep(0.05)
    process.send_signal(kill)
    _, err = process.communicate()
    if kill == signal.SIGINT:
        assert f"{REPO} was made and is empty; the same command goes on" in err
    assert set(hub.store.repos[REPO].head.files) == {".gitattributes"}
    hub.release()
    hub.seen.clear()
    assert machine.upload(staged).status == 0
    assert hub.bytes_to_storage() == 0
