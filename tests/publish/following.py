"""Publishing as a user does it, and following the card as a stranger does."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from dualign.rundir import cache_folder
from tests.publish.hub.client import ROOT, Done, environment
from tests.publish.hub.server import Hub
from tests.publish.hub.store import Repo

TOKEN = "hf_of_the_road_test"


def run(hub: Hub, home: Path, run_dir: Path, repo_id: str, *options: str) -> Done:
    """`dualign publish`, in a process of its own."""
    command = [sys.executable, "-m", "dualign", "publish", str(run_dir), repo_id, *options]
    done = subprocess.run(
        command,
        cwd=home,
        env=environment(
            hub.url, home, TOKEN, PYTHONPATH=str(ROOT), DUALIGN_CACHE=str(cache_folder())
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    return Done(status=done.returncode, out=done.stdout, err=done.stderr)


def published(hub: Hub, home: Path, run_dir: Path, repo_id: str, *options: str) -> Repo:
    """The repository as it is after `dualign publish ... --yes`."""
    done = run(hub, home, run_dir, repo_id, *options, "--yes")
    assert done.status == 0, done.out + done.err
    repo = hub.store.repos[repo_id]
    assert f"published: {hub.url}/{repo_id} at {repo.head.oid}" in done.out
    return repo


def card_of(hub: Hub, repo_id: str, file: str = "README.md") -> str:
    """A card of a repository (of a dataset: datasets/OWNER/NAME) as the hub gives it to someone who may see it."""
    address = f"{hub.url}/{repo_id}/resolve/main/{file}"
    with urlopen(Request(address, headers={"Authorization": f"Bearer {TOKEN}"})) as answer:
        return str(answer.read().decode())


def follow(card: str, python: Path, hub: Hub, home: Path) -> list[list[str]]:
    """Run every Python snippet of the card in an empty environment; what each printed, by lines."""
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
