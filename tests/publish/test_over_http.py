"""Publishing again by the command, to a hub on loopback: what an earlier publication left, and what the user wrote."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.publish.hub import conftest as on_a_hub
from tests.publish.hub.conftest import Machine

hub, listening, machine, tokens = (
    on_a_hub.hub, on_a_hub.listening, on_a_hub.machine, on_a_hub.tokens
)  # fmt: skip

BASE_CARD = "---\nlicense: cc-by-4.0\nlanguage: [en, fr]\n---\n# base\n"


@pytest.fixture
def base_id(machine: Machine, road: Path, tmp_path: Path) -> str:
    """The base as its makers published it; its commit."""
    shutil.copytree(road.parent / "base", tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(BASE_CARD)
    done = machine.upload(tmp_path / "base", "ada/base")
    return f"ada/base@{done.told['commit']}"


def publish(machine: Machine, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dualign", "publish", *map(str, words)]
    return subprocess.run(command, env=machine.env(), capture_output=True, text=True, check=False)


def state(machine: Machine, repo_id: str) -> dict[str, Any]:
    return dict(machine.state(repo_id).told)


@pytest.mark.slow
def test_weights_replace_an_adapter_and_the_users_words_stay(
    machine: Machine, road: Path, base_id: str, tmp_path: Path
) -> None:
    words = ("ada/tiny", "--base", base_id, "--license", "mit", "--yes")
    assert publish(machine, road / "apo", *words).returncode == 0
    edited = tmp_path / "edited"
    edited.mkdir()
    card = state(machine, "ada/tiny")["card"] + "\n## My notes\n\nmine\n"
    (edited / "README.md").write_text(card)
    assert machine.upload(edited, "ada/tiny").status == 0
    done = publish(machine, road / "apo", *words, "--what", "weights")
    assert done.returncode == 0, done.stdout + done.stderr
    there = state(machine, "ada/tiny")
    assert "adapter_config.json" not in there["files"] and "model.safetensors" in there["files"]
    assert "## My notes" in there["card"] and "### transformers" in there["card"]


@pytest.mark.slow
def test_a_repository_of_someone_else_is_refused_before_anything_is_sent(
    machine: Machine, road: Path, base_id: str
) -> None:
    done = publish(
        machine, road / "merged", "bob/tiny", "--base", base_id, "--license", "mit", "--yes"
    )
    assert done.returncode == 1 and "token may not write to bob/tiny" in done.stdout
