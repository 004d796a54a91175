"""The whole road: a finished run -> the hub -> someone else, who has torch, transformers, peft and the card."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dualign.checkpoints.embedded import EMBEDDED
from dualign.export.export import export
from dualign.export.llama_runtime import installed
from dualign.hashing import sha256
from tests.publish import test_exported
from tests.publish.empty_environment import empty_environment
from tests.publish.following import TOKEN, card_of, follow, published, run
from tests.publish.hub.api import Person
from tests.publish.hub.client import call, environment
from tests.publish.hub.server import Hub, running_hub
from tests.publish.quickstart_road import KNOWN, put_base

gguf, half = test_exported.gguf, test_exported.half

IN_BOTH_MODES = ["one and two", "</think>", "", "3", "3"]  # to "What is 1+2?"
BASE_CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    people = {TOKEN: Person(name="ada")}
    with running_hub(tmp_path_factory.mktemp("hub"), people) as running:
        yield running


@pytest.fixture(scope="module")
def said(hub: Hub, road: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the records don't say: the base on the hub, and the licenses of the rows."""
    folder = tmp_path_factory.mktemp("hub-base") / "base"
    shutil.copytree(road.parent / "base", folder)
    (folder / "README.md").write_text(BASE_CARD)
    env = environment(hub.url, tmp_path_factory.mktemp("home"), TOKEN)
    asked = {"repo_id": "ada/base", "private": False, "message": "Base"}
    done = call(env, "upload", folder=folder, **asked)
    licenses = [f"--license-of={name}=apache-2.0" for name in ("train", "pairs")]
    return ["--base", f"ada/base@{done.told['commit']}", *licenses]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_environment(tmp_path_factory.mktemp("empty"), "torch", "transformers", "peft")


def test_an_adapter_is_used_by_following_its_card_alone(
    hub: Hub, road: Path, said: list[str], python: Path, tmp_path: Path
) -> None:
    """The card's question is one of the four sums that the model knows by heart."""
    repo = published(hub, tmp_path, road / "apo", "ada/adapter", *said)
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
    said: list[str],
    python: Path,
    tmp_path: Path,
    stage: str,
    options: tuple[str, ...],
    snippets: int,
) -> None:
    published(hub, tmp_path, road / stage, "ada/weights", *said, "--public", *options)
    answers = follow(card_of(hub, "ada/weights"), python, hub, tmp_path / "someone else")
    assert answers == [IN_BOTH_MODES] * snippets
    del hub.store.repos["ada/weights"]


@pytest.mark.slow
def test_a_dry_run_leaves_the_hub_alone_and_a_second_publication_keeps_what_users_wrote(
    hub: Hub, road: Path, said: list[str], tmp_path: Path
) -> None:
    before = hub.state()
    done = run(hub, tmp_path, road / "merged", "ada/again", *said)
    assert done.status == 0, done.out + done.err
    assert "nothing has left" in done.out
    assert hub.state() == before
    published(hub, tmp_path, road / "merged", "ada/again", *said)
    card = card_of(hub, "ada/again") + "\n## Thanks\n\nTo all who helped.\n"
    hub.store.someone_commits("ada/again", "README.md", card)
    hub.store.someone_commits("ada/again", "notes.md", "mine")
    hub.seen.clear()
    repo = published(hub, tmp_path, road / "merged", "ada/again", *said)
    assert hub.bytes_to_storage() == 0
    assert "To all who helped." in card_of(hub, "ada/again")
    assert "notes.md" in repo.head.files


@pytest.mark.slow
def test_a_full_disk_midway_is_told_and_leaves_the_hub_as_it_was(
    hub: Hub, road: Path, said: list[str], tmp_path: Path
) -> None:
    before = hub.state()
    # The tests above may have sent these weights, and what the Hub has isn't sent again.
    large = hub.store.root / "large"
    aside = large.rename(hub.store.root / "aside")
    hub.store.room = 100_000
    done = run(hub, tmp_path, road / "merged", "ada/full", *said, "--yes")
    hub.store.room = None
    shutil.rmtree(large, ignore_errors=True)
    aside.rename(large)
    assert done.status == 2
    assert "error: ada/full: sending the large files: the Hub answered 507" in done.err
    assert "Traceback" not in done.err
    assert hub.state() == before


@pytest.mark.slow
def test_a_copy_in_fewer_bits_is_used_by_following_its_card_alone(
    hub: Hub, road: Path, said: list[str], python: Path, tmp_path: Path
) -> None:
    """Its original is on the hub, and its card is what leads there."""
    published(hub, tmp_path, road / "merged", "ada/original", *said)
    copy = tmp_path / "half"
    model = AutoModelForCausalLM.from_pretrained(road / "merged", dtype=torch.bfloat16)
    model.save_pretrained(copy)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(road / "merged" / name, copy)
    files = [{"file": "model.safetensors", "sha256": sha256(copy / "model.safetensors")}]
    record = {"schema": 1, "model": str(road / "merged"), "type": "bf16", "files": files}
    (copy / "export.json").write_text(json.dumps(record))
    repo = published(hub, tmp_path, copy, "ada/half", "--quantized-of", "ada/original")
    assert len(repo.commits) == 2
    card = card_of(hub, "ada/half")
    assert "base_model: ada/original\n" in card and "base_model_relation: quantized" in card
    answers = follow(card, python, hub, tmp_path / "someone else")
    assert answers == [IN_BOTH_MODES]
    done = run(hub, tmp_path, copy, "ada/other", "--quantized-of", "ada/base", "--yes")
    assert done.status == 1 and "ada/base holds other weights than merged" in done.out


@pytest.mark.slow
def test_copies_stay_with_their_weights_and_go_with_others(
    hub: Hub, road: Path, said: list[str], gguf: Path, half: Path, tmp_path: Path
) -> None:
    words = (*said, "--with", str(gguf), str(half))
    repo = published(hub, tmp_path, road / "merged", "ada/beside", *words)
    assert len(repo.commits) == 2, "one for all, after the Hub's own"
    copies = {"merged-F16.gguf", "Modelfile", "bf16/model.safetensors", "bf16/export.json"}
    assert copies < repo.head.files.keys()
    part = re.compile(r"## Copies in fewer bits.*?## Results", re.DOTALL)
    (before,) = part.findall(card_of(hub, "ada/beside"))

    again = published(hub, tmp_path, road / "merged", "ada/beside", *said, "--language", "de")
    assert again.head.files.keys() == repo.head.files.keys()
    assert part.findall(card_of(hub, "ada/beside")) == [before]
    done = run(hub, tmp_path, road / "merged", "ada/beside", *words, "--card-only")
    assert done.status == 0, done.out
    assert "files of this run that the card tells of" in " ".join(done.out.split())

    other = (*said, "--what", "weights")
    done = run(hub, tmp_path, road / "folded", "ada/beside", *other)
    assert "are deleted: made from other weights" in " ".join(done.out.split())
    left = published(hub, tmp_path, road / "folded", "ada/beside", *other)
    assert not copies & left.head.files.keys()
    assert "Copies in fewer bits" not in card_of(hub, "ada/beside")


@pytest.mark.slow
def test_a_pack_of_adapters_is_used_by_following_its_card_alone(
    hub: Hub, road: Path, said: list[str], python: Path, tmp_path: Path
) -> None:
    folders = [road / "sft", road / "apo"]
    done = run(hub, tmp_path, folders[0], str(folders[1]), "ada/pack", *said, "--yes")
    assert done.status == 0, done.out + done.err
    files = hub.store.repos["ada/pack"].head.files
    assert {f"adapters/{name}/adapter_model.safetensors" for name in ("sft", "apo")} < files.keys()
    assert len(hub.store.repos["ada/pack"].commits) == 2
    (printed,) = follow(card_of(hub, "ada/pack"), python, hub, tmp_path / "someone else")
    assert "\n".join(printed).count("</think>") == 2, "a trace of each adapter"
    own = card_of(hub, "ada/pack", "adapters/apo/README.md")
    assert follow(own, python, hub, tmp_path / "someone with one") == [IN_BOTH_MODES]


@pytest.mark.slow
def test_the_card_alone_goes_to_its_own_weights_and_to_no_others(
    hub: Hub, road: Path, said: list[str], tmp_path: Path
) -> None:
    published(hub, tmp_path, road / "merged", "ada/carded", *said)
    hub.seen.clear()
    words = (*said, "--language", "de", "--card-only")
    repo = published(hub, tmp_path, road / "merged", "ada/carded", *words)
    assert hub.bytes_to_storage() == 0 and len(repo.commits) == 3
    before, after = repo.commits[-2].files, repo.commits[-1].files
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"README.md", "run.json"} and before.keys() == after.keys()
    assert "language:\n- de" in card_of(hub, "ada/carded")
    done = run(hub, tmp_path, road / "folded", "ada/carded", *words, "--what", "weights", "--yes")
    assert done.status == 1 and "model.safetensors on the Hub isn't this run's" in done.out
    assert hub.store.repos["ada/carded"].head == repo.head


@pytest.mark.slow
def test_a_pull_request_is_printed_and_not_opened_twice(
    hub: Hub, road: Path, said: list[str], tmp_path: Path
) -> None:
    published(hub, tmp_path, road / "merged", "ada/asked", *said, "--gated", "auto")
    assert "Access has to be asked for" in card_of(hub, "ada/asked")
    words = (*said, "--language", "fr", "--pr", "--card-only", "--yes")
    for _ in range(2):
        done = run(hub, tmp_path, road / "merged", "ada/asked", *words)
        assert done.status == 0, done.out + done.err
        assert f"pull request: {hub.url}/ada/asked/discussions/1 at " in done.out
    repo = hub.store.repos["ada/asked"]
    assert len(repo.pulls) == 1 and len(repo.commits) == 2


@pytest.mark.slow
@pytest.mark.skipif("xllamacpp" not in installed(), reason="needs xllamacpp, which runs llama.cpp")
def test_gguf_files_are_used_in_llama_cpp_by_following_their_card_alone(
    hub: Hub, tmp_path: Path
) -> None:
    """The 135M that comes with a package, as its makers published it: the tiny model has no tokenizer
    that llama.cpp knows.
    """
    put_base(hub, tmp_path)
    export(EMBEDDED, tmp_path / "gguf", types=["q8_0"], name="small")
    repo = published(hub, tmp_path, tmp_path / "gguf", "ada/GGUF", "--quantized-of", KNOWN.id)
    assert {"small-Q8_0.gguf", "Modelfile", "export.json"} <= set(repo.head.files)
    python = empty_environment(tmp_path / "empty", "xllamacpp", "huggingface_hub")
    (printed,) = follow(card_of(hub, "ada/GGUF"), python, hub, tmp_path / "someone else")
    assert len(" ".join(printed).split()) > 4, "it says something in both modes"
