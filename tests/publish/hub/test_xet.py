"""Uploads by Xet, which is what huggingface_hub does where hf_xet is installed and nothing is set."""

import secrets
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.publish.hub.client import Done, call, start
from tests.publish.hub.conftest import REPO, Machine
from tests.publish.hub.server import Hub
from tests.publish.hub.test_upload import contents, of_folder

ASKED = {"repo_id": REPO, "private": True, "message": "Publish"}


def as_installed(machine: Machine, **more: str) -> dict[str, str]:
    return machine.env(**more) | {"HF_HUB_DISABLE_XET": "0"}


def by_xet(machine: Machine, folder: Path, **more: str) -> Done:
    return call(as_installed(machine, **more), "upload", folder=folder, **ASKED)


def test_floats_text_and_noise_arrive_as_they_were_and_are_sent_once(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    """Each is packed in another way. The second call sends no block."""
    hub.api.xet = True
    weights = np.random.default_rng(0).normal(0, 0.02, 200_000).astype("<f4")
    (staged / "model-00002.safetensors").write_bytes(weights.tobytes())
    (staged / "tokenizer.json").write_text('"word", ' * 1_500_000)
    first = by_xet(machine, staged)
    there = contents(hub)
    del there[".gitattributes"]
    assert there == of_folder(staged)
    assert "model-00002.safetensors: 100%" in first.err
    assert len(hub.store.repos[REPO].commits) == 2
    sent = hub.bytes_to_storage()
    assert 300_000 < sent < 1_200_000, "text packs to nothing, floats to less than they are"
    assert not hub.requests("PUT /large/")
    assert by_xet(machine, staged).told == first.told
    assert hub.bytes_to_storage() == sent


def test_a_server_without_xet_storage_is_told_apart(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    done = by_xet(machine, staged)
    assert done.status == 2
    assert "it has no Xet storage: set HF_HUB_DISABLE_XET=1" in done.err
    assert not hub.state()


@pytest.mark.parametrize("on", ["GET .*/xet-write-token/", "POST /v1/xorbs/"])
def test_a_refusal_by_the_storage_is_told_and_the_hub_is_as_it_was(
    hub: Hub, machine: Machine, staged: Path, on: str
) -> None:
    hub.api.xet = True
    hub.plan(on, status=403)
    done = by_xet(machine, staged)
    assert "sending the large files: the Hub answered 403: your token may not do this" in done.err
    assert "deleted again" in done.err
    assert not hub.state()


def test_a_network_that_stays_broken_leaves_an_empty_repository_to_go_on_from(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    hub.api.xet = True
    hub.plan("POST /v1/xorbs/", cut_after=1000, times=99)
    done = by_xet(machine, staged, HF_XET_CLIENT_RETRY_MAX_ATTEMPTS="0")
    assert "the Hub client failed (Network error" in done.err
    assert f"{hub.url}/{REPO} was made and is empty; the same command goes on" in done.err
    assert set(hub.store.repos[REPO].head.files) == {".gitattributes"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [{"on": "POST /v1/xorbs/", "status": 500}, {"on": "POST /v1/xorbs/", "cut_after": 100_000},
     {"on": "POST /v1/shards", "status": 429}],
    ids=["500", "cut", "429"],
)  # fmt: skip
def test_what_fails_once_is_tried_again(
    hub: Hub, machine: Machine, staged: Path, what: dict[str, object]
) -> None:
    hub.api.xet = True
    hub.plan(**what)  # type: ignore[arg-type]
    assert by_xet(machine, staged).status == 0
    assert not hub.faults[0].times, "it happened"
    assert "model.safetensors" in contents(hub)


@pytest.mark.slow
def test_a_second_run_goes_on_inside_a_large_file_after_kill_9(
    hub: Hub, machine: Machine, staged: Path
) -> None:
    """220 MB go in four blocks; two had arrived when the process was killed, and aren't sent again."""
    hub.api.xet = True
    content = secrets.token_bytes(220_000_000)
    (staged / "model.safetensors").write_bytes(content)
    hub.plan("POST /v1/xorbs/", skip=2, hold=True, times=9)
    # What has arrived is written down every 20 seconds, or after so many blocks.
    noted = {"HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT": "1"}
    process = start(as_installed(machine, **noted), "upload", folder=staged, **ASKED)
    noted_blocks = machine.home / "hf" / "xet"
    while len(list(noted_blocks.rglob("xorb_metadata/*.mdb"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    arrived = hub.requests("POST /v1/xorbs/")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert set(hub.store.repos[REPO].head.files) == {".gitattributes"}
    hub.release()
    hub.seen.clear()
    assert by_xet(machine, staged).status == 0
    assert contents(hub)["model.safetensors"] == content
    again = hub.requests("POST /v1/xorbs/")
    assert len(again) == 2
    assert not {request.path for request in again} & {request.path for request in arrived}
