"""What a repository holds after an upload, and what was sent for it."""

import secrets
from pathlib import Path

import pytest

from tests.publish.hub.conftest import CARD, REPO, Machine
from tests.publish.hub.server import Hub


def contents(hub: Hub, repo_id: str = REPO) -> dict[str, bytes]:
    files = hub.store.repos[repo_id].head.files
    return {path: hub.store.content(file).read_bytes() for path, file in files.items()}


def of_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_new_repository_is_private_and_gets_every_staged_file_by_one_commit(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    told = machine.upload(staged, message="Publish the run").told
    repo = hub.store.repos[REPO]
    assert repo.private
    assert [commit.message for commit in repo.commits] == ["initial commit", "Publish the run"]
    assert (told["url"], told["commit"]) == (f"{hub.url}/{REPO}", repo.head.oid)
    there = contents(hub)
    del there[".gitattributes"]
    assert there == of_folder(staged)


def test_publishing_the_same_folder_again_sends_no_large_file_and_makes_no_commit(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    first = machine.upload(staged).told
    hub.seen.clear()
    assert machine.upload(staged).told == first
    assert hub.bytes_to_storage() == 0
    assert not hub.requests("POST .*/commit/")
    assert len(hub.store.repos[REPO].commits) == 2


def test_a_change_sends_what_changed_and_leaves_what_others_added(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged)
    hub.store.someone_commits(REPO, "examples.md", "theirs")
    hub.seen.clear()
    (staged / "README.md").write_text(CARD + "New words.\n")
    machine.upload(staged)
    assert hub.bytes_to_storage() == 0
    there = contents(hub)
    assert there["examples.md"] == b"theirs"
    assert there["README.md"].endswith(b"New words.\n")
    assert len(hub.store.repos[REPO].commits) == 4


def test_files_to_delete_go_in_the_commit_that_brings_the_others(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged)
    (staged / "model.safetensors").rename(staged / "adapter_model.safetensors")
    machine.upload(staged, delete=["model.safetensors", "never_there.bin"])
    assert len(hub.store.repos[REPO].commits) == 3
    there = contents(hub)
    del there[".gitattributes"]
    assert there == of_folder(staged)


def test_a_gitignore_in_the_repository_leaves_nothing_out(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged)
    hub.store.someone_commits(REPO, ".gitignore", "extra.safetensors\nextra.json\n")
    (staged / "extra.safetensors").write_bytes(b"\0" * 100)
    (staged / "extra.json").write_text("[]")
    machine.upload(staged)
    assert {"extra.safetensors", "extra.json"} <= set(contents(hub))


def test_large_files_show_their_progress(machine: Machine, staged: Path) -> None:
    assert "model.safetensors: 100%" in machine.upload(staged).err


def test_a_folder_without_files_is_refused(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "nothing to publish" in machine.upload(tmp_path / "empty").err
    assert not hub.seen


@pytest.mark.parametrize("there", [True, False], ids=["private", "public"])
def test_a_repository_never_changes_its_visibility_by_an_upload(
    hub: Hub, machine: Machine, staged: Path, there: bool
) -> None:
    hub.store.create(REPO, private=there)
    before = hub.state()
    done = machine.upload(staged, private=not there)
    found, asked = ("private", "public") if there else ("public", "private")
    assert f"{REPO} is {found} and {asked} was asked for" in done.err
    assert done.status == 2
    assert hub.state() == before


def test_the_state_of_a_repository_tells_its_files_hashes_card_and_head(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    assert machine.state().told["exists"] is False
    commit = machine.upload(staged).told["commit"]
    told = machine.state().told
    assert told["user"] == "ada"
    assert (told["exists"], told["private"], told["writable"]) == (True, True, True)
    assert told["head"] == commit
    assert told["card"] == CARD
    kept = hub.store.repos[REPO].head.files
    assert {path: file["sha256"] for path, file in told["files"].items()} == {
        path: file.sha256 for path, file in kept.items()
    }
    assert told["files"]["model.safetensors"]["size"] == 300_000


def test_a_repository_of_an_organization_can_be_made_by_a_member(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged, repo_id="lab/model")
    assert "model.safetensors" in contents(hub, "lab/model")


def test_a_file_of_40_mb_is_sent_on_from_where_the_connection_broke(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    """40 parts of 1 MB; the 21st breaks after 0.4 MB. What goes twice is that part alone."""
    content = secrets.token_bytes(40_000_000)
    (staged / "model.safetensors").write_bytes(content)
    hub.plan(r"PUT /large/\w+/21$", cut_after=400_000)
    machine.upload(staged)
    assert contents(hub)["model.safetensors"] == content
    sent = [request.path.rsplit("/", 1)[1] for request in hub.requests(r"PUT /large/\w+/\d")]
    assert sent == [str(n) for n in [*range(1, 22), *range(21, 41)]]
    size_of_plot = (staged / "plots" / "loss.png").stat().st_size
    assert hub.bytes_to_storage() - size_of_plot == 40_000_000 + 400_000


def test_a_second_run_sends_only_the_large_files_that_had_not_arrived(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    """As after a crash between two shards: one of two is on the hub, and no commit names it."""
    (staged / "model-00002.safetensors").write_bytes(secrets.token_bytes(500_000))
    machine.upload(staged)
    hub.store.repos.clear()
    second = (staged / "model-00002.safetensors").read_bytes()
    stored = next(
        path for path in hub.store.path("large", "").iterdir() if path.read_bytes() == second
    )
    stored.unlink()
    hub.seen.clear()
    machine.upload(staged)
    assert hub.bytes_to_storage() == 500_000
    assert contents(hub)["model-00002.safetensors"] == second


def test_the_token_is_in_no_output_and_no_file(
    hub: Hub, machine: Machine, staged: Path, tmp_path: Path
) -> None:
    """Not even where the server's own words repeat it."""
    done = [machine.upload_alone(staged), machine.state_alone()]
    (staged / "config.json").write_text("[]")
    hub.plan("POST .*/commit/", status=403, say=f"token {machine.token} may not do this")
    done.append(machine.upload_alone(staged))
    assert "token <token> may not do this" in done[-1].err
    for item in done:
        assert machine.token not in item.out + item.err
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 5
    assert not [path for path in kept if machine.token.encode() in path.read_bytes()]


def test_a_dataset_is_a_repository_of_its_own_beside_a_model_of_that_name(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    machine.upload(staged)
    (staged / "model.safetensors").rename(staged / "train.parquet")
    told = machine.upload(staged, kind="dataset").told
    repo = hub.store.repos[f"datasets/{REPO}"]
    assert (told["url"], told["commit"]) == (f"{hub.url}/datasets/{REPO}", repo.head.oid)
    assert "train.parquet" in repo.head.files
    assert "model.safetensors" in hub.store.repos[REPO].head.files
    assert machine.upload(staged, kind="dataset").told == told, "and goes on as it was"
