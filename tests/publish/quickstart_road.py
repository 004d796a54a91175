"""The road's end on the real 135M: publish a finished quickstart to a hub on loopback, and use it by its cards alone.

dualign run quickstart
python -m tests.publish.quickstart_road runs/quickstart merged apo-1

The base is on that hub under its real name and commit, as this machine's package has it. A quarter of an hour on two cores.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dualign.checkpoints.embedded import embedded_model
from dualign.export.export import export
from dualign.publish.base import EMBEDDED_ON_THE_HUB
from tests.publish.empty_environment import empty_environment
from tests.publish.following import TOKEN, card_of, follow, published
from tests.publish.hub.api import Person
from tests.publish.hub.client import call, environment
from tests.publish.hub.server import Hub, running_hub

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


def export_and_publish(hub: Hub, place: Path, run_dir: Path, weights: str) -> None:
    """GGUF files of the first stage in a repository of their own, used in llama.cpp by their card."""
    export(str(run_dir), place / "gguf", types=["q8_0"])
    repo = published(hub, place, place / "gguf", f"{weights}-GGUF", "--quantized-of", weights)
    print(f"{repo.name}: {len(repo.head.files)} files")
    python = empty_environment(place / "llama", "xllamacpp", "huggingface_hub")
    for answers in follow(card_of(hub, repo.name), python, hub, place / "someone-gguf"):
        print("\n".join(answers))


def main(runs: Path, stages: list[str]) -> None:
    place = Path(tempfile.mkdtemp(prefix="quickstart-road-"))
    python = empty_environment(place / "empty", "torch", "transformers", "peft")
    with running_hub(place / "hub", {TOKEN: Person(name="ada")}, part_size=64_000_000) as hub:
        put_base(hub, place)
        for stage in stages:
            repo_id = f"ada/{stage}"
            hub.seen.clear()
            started = time.monotonic()
            repo = published(hub, place, runs / stage, repo_id, *LICENSES)
            sent = hub.bytes_to_storage()
            print(
                f"{repo_id}: {len(repo.head.files)} files, {sent / 1e6:.1f} MB sent, {time.monotonic() - started:.0f} s"
            )
            card = card_of(hub, repo_id)
            (place / f"{stage}.md").write_text(card)
            print(f"card: {place / stage}.md")
            for answers in follow(card, python, hub, place / f"someone-{stage}"):
                print("\n".join(answers))
        export_and_publish(hub, place, runs / stages[0], f"ada/{stages[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
