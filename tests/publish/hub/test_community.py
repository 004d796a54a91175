"""Pull requests, gated and organizations' repositories, and collections."""

from pathlib import Path

from tests.publish.hub.conftest import CARD, REPO, Machine
from tests.publish.hub.server import Hub


def test_a_pull_request_is_opened_once_for_a_content(
    hub: Hub, machine: Machine, bob: Machine, staged: Path
) -> None:
    machine.upload(staged, private=False)
    head = hub.store.repos[REPO].head.oid
    (staged / "README.md").write_text(CARD + "New words.\n")
    first = bob.upload(staged, private=False, pull_request=True).told
    assert first["url"] == f"{hub.url}/{REPO}/discussions/1" and first["pull_request"]
    repo = hub.store.repos[REPO]
    assert repo.head.oid == head, "main is as it was"
    assert [(pull.author, pull.title) for pull in repo.pulls] == [("bob", "Publish")]
    assert bob.upload(staged, private=False, pull_request=True).told == first
    (staged / "README.md").write_text(CARD + "Newer words.\n")
    second = bob.upload(staged, private=False, pull_request=True).told
    assert second["url"].endswith("/discussions/2"), "another content is another pull request"
    (staged / "README.md").write_text(CARD)
    told = bob.upload(staged, private=False, pull_request=True).told
    assert told == {**told, "url": f"{hub.url}/{REPO}", "commit": head, "pull_request": False}
    assert len(hub.store.repos[REPO].pulls) == 2, "the repository has these files already"


def test_a_lost_answer_opens_no_second_pull_request(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged)
    (staged / "README.md").write_text(CARD + "New words.\n")
    hub.plan("POST .*/commit/", lose_answer=True)
    told = machine.upload(staged, pull_request=True).told
    assert told["url"].endswith("/discussions/1")
    assert len(hub.store.repos[REPO].pulls) == 1


def test_there_is_nothing_to_open_a_pull_request_on(machine: Machine, staged: Path) -> None:
    done = machine.upload(staged, pull_request=True)
    assert done.status == 2 and f"{REPO}: isn't there, so there is nothing to open" in done.err


def test_a_repository_is_gated_before_a_file_is_in_it(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged, private=False, gated="manual")
    assert hub.store.repos[REPO].gated == "manual"
    order = [
        request.path.rsplit("/", 1)[-1] for request in hub.requests("PUT .*settings|POST .*commit")
    ]
    assert order == ["settings", "main"]
    assert machine.state().told["gated"] == "manual"
    assert machine.upload(staged, private=False).status == 0, "it stays as it is"
    done = machine.upload(staged, private=False, gated="auto")
    assert done.status == 2 and f"{REPO} is manual and gated auto was asked for" in done.err


def test_who_may_only_read_in_an_organization_is_told_whom_to_ask(
    hub: Hub, machine: Machine, bob: Machine, staged: Path
) -> None:
    done = bob.upload(staged, "lab/model")
    assert done.status == 2
    assert "lab/model: bob's role in lab is read: ask an admin of lab for write" in done.err
    assert not hub.store.repos
    assert machine.upload(staged, "lab/model").status == 0
    done = bob.upload(staged, REPO)
    assert f"bob's token may not write to {REPO}" in done.err and "publish under bob/" in done.err


def test_a_collection_is_found_by_title_made_if_absent_and_joined_once(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged)
    url = machine.join("Sums in two modes").told_text
    ((slug, collection),) = hub.store.collections.items()
    assert url == f"{hub.url}/collections/{slug}" and collection["private"]
    assert machine.join("sums in two modes").told_text == url
    assert machine.join(slug).told_text == url
    machine.upload(staged, kind="dataset")
    assert machine.join(slug, kind="dataset").told_text == url
    items = hub.store.collections[slug]["items"]
    assert [(item["id"], item["type"]) for item in items] == [(REPO, "model"), (REPO, "dataset")]


def test_a_collection_that_refuses_is_said(hub: Hub, machine: Machine, staged: Path) -> None:
    machine.upload(staged)
    done = machine.join("bob/his-64f9a55bb3115b4f513ec026")
    assert done.status == 2
    assert f"{REPO}: adding it to the collection 'bob/his-64f9a55bb3115b4f513ec026': " in done.err
    assert "404" in done.err
