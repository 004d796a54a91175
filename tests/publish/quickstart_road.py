"""The road's end on the real 135M: publish a finished quickstart to a hub on loopback, and use it by its cards alone.

dualign run quickstart
python -m tests.publish.quickstart_road runs/quickstart fp8 merged apo-1

The weights go with GGUF files and a checkpoint of that type beside them, the adapters alone, and each copy once more
into a repository of its own. The base is on that hub under its real name and commit, as this machine's package has it.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dualign.checkpoints.embedded import embedded_model
from dualign.export.comparison import ComparisonConfig
from dualign.export.compressed.export import export_compressed
from dualign.export.export import export
from dualign.publish.base import EMBEDDED_ON_THE_HUB
from tests.publish.empty_environment import empty_environment
from tests.publish.following import TOKEN, card_of, follow, published
from tests.publish.hub.api import Person
from tests.publish.hub.client import call, environment
from tests.publish.hub.server import Hub, running_hub
from tests.publish.hub.store import Repo

(KNOWN,) = EMBEDDED_ON_THE_HUB.values()
BASE_CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n"
LICENSES = ("--license", "apache-2.0")


def put_base(hub: Hub, home: Path) -> None:
    folder = home / "base"
    folder.mkdir()
    for file in embedded_model().iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "README.md").write_text(BASE_CARD)
    env = environment(hub.url, home, TOKEN)
    asked = {"folder": folder, "repo_id": "ada/base", "private": False, "message": "Base"}
    assert call(env, "upload", **asked).status == 0
    repo = hub.store.repos.pop("ada/base")
    head = replace(repo.head, oid=KNOWN.revision)
    hub.store.repos[KNOWN.id] = replace(repo, name=KNOWN.id, commits=(head,))


def export_copies(place: Path, run_dir: Path, type: str) -> tuple[Path, Path]:
    """GGUF files, and a checkpoint in fewer bits that was compared on a few problems."""
    gguf, checkpoint = place / "gguf", place / type
    export(str(run_dir), gguf, types=["q8_0"])
    export_compressed(str(run_dir), checkpoint, type=type, comparison=ComparisonConfig(rows=2))
    return gguf, checkpoint


def use(hub: Hub, place: Path, repo: Repo, python: Path) -> None:
    """Follow the card as someone who has never seen the machine that published."""
    card = card_of(hub, repo.name)
    (place / f"{repo.name.split('/')[1]}.md").write_text(card)
    print(f"{repo.name}: {len(repo.head.files)} files, {len(repo.commits) - 1} commits", flush=True)
    started = time.monotonic()
    for answers in follow(card, python, hub, place / f"someone-{repo.name.split('/')[1]}"):
        print("\n".join(answers))
    print(f"used by its card: {time.monotonic() - started:.0f} s", flush=True)


def main(runs: Path, type: str, weights: str, *adapters: str) -> None:
    place = Path(tempfile.mkdtemp(prefix="quickstart-road-"))
    print(f"cards: {place}/*.md", flush=True)
    copies = export_copies(place, runs / weights, type)
    packages = ("torch", "transformers", "peft", "compressed-tensors", "xllamacpp")
    python = empty_environment(place / "empty", *packages, "huggingface_hub")
    with running_hub(place / "hub", {TOKEN: Person(name="ada")}, part_size=64_000_000) as hub:
        put_base(hub, place)
        for stage in adapters:
            repo = published(hub, place, runs / stage, f"ada/{stage}", *LICENSES)
            use(hub, place, repo, python)
        words = (*LICENSES, "--with", *map(str, copies))
        use(hub, place, published(hub, place, runs / weights, "ada/merged", *words), python)
        for copy in copies:
            repo = published(
                hub, place, copy, f"ada/merged-{copy.name}", "--quantized-of", "ada/merged"
            )
            use(hub, place, repo, python)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
