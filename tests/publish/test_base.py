"""Bases by hub id and commit, and whether the hub's weights are those that an adapter was trained on."""

import hashlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dualign.errors import PublishError
from dualign.publish.base import Base, find_bases
from dualign.publish.checks.provenance import weights_difference
from dualign.publish.hub.metadata import HubClient, RepoMetadata
from dualign.publish.lineage import Lineage, Root
from dualign.publish.sources import DataSource, data_sources, is_hub_id, licenses, said_licenses
from dualign.report.runs import StageRun

COMMIT = "b" * 40


def facts(**changes: object) -> RepoMetadata:
    whole = {"commit": COMMIT, "license": "mit", "languages": ("en",), "sha256": {}}
    return RepoMetadata(**{**whole, **changes})


def knowing(
    name: str, about: RepoMetadata | None, revision: str | None = None, kind: str = "model"
) -> HubClient:
    """A hub that says this of one repository, and can't be asked for more."""
    return HubClient(reachable=False, answers={(kind, name, revision): about})


def base_at(folder: Path, revision: str = COMMIT) -> Base:
    root = Root(reference=str(folder), revision=None)
    return Base(root=root, id="acme/base", revision=revision)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of acme/base, as huggingface_hub lays it out."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path / "models--acme--base"


def snapshot(cache: Path, road: Path) -> Path:
    folder = cache / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((road.parent / "base" / "config.json").read_text())
    return folder


def test_a_hub_id_gets_the_commit_that_it_stands_for() -> None:
    root = Root(reference="acme/base", revision=None)
    (found,) = find_bases([root], [], knowing("acme/base", facts()))
    assert (found.id, found.revision, found.license) == ("acme/base", COMMIT, "mit")


def test_the_commit_that_was_trained_on_is_the_caches_not_todays(cache: Path) -> None:
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c" * 40)
    root = Root(reference="acme/base", revision=None)
    (found,) = find_bases([root], [], knowing("acme/base", facts()))
    assert found.revision == "c" * 40


def test_the_embedded_model_is_known_without_the_hub() -> None:
    root = Root(reference="embedded:smollm2-135m-instruct", revision=None)
    (found,) = find_bases([root], [], HubClient(reachable=False))
    assert found.id == "HuggingFaceTB/SmolLM2-135M-Instruct" and len(found.revision or "") == 40
    assert (found.license, found.languages) == ("apache-2.0", ("en",))


def test_of_several_bases_each_gets_the_name_that_was_said_for_it(tmp_path: Path) -> None:
    roots = [Root(reference=str(tmp_path / name), revision=None) for name in ("a", "b")]
    said = [f"{tmp_path}/b=acme/b@{COMMIT}", f"{tmp_path}/a=acme/a@{COMMIT}"]
    found = find_bases(roots, said, HubClient(reachable=False))
    assert [base.id for base in found] == ["acme/a", "acme/b"]


def test_weights_are_the_same_when_the_hub_tells_their_hash(road: Path) -> None:
    file = road.parent / "base" / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    base = base_at(road.parent / "base")
    same = facts(sha256={"model.safetensors": digest})
    assert weights_difference(base, knowing("acme/base", same, COMMIT)) is None
    other = facts(sha256={"model.safetensors": "0" * 64})
    said = weights_difference(base, knowing("acme/base", other, COMMIT))
    assert said and "its weight files have other hashes than acme/base's" in said


def test_weights_in_the_cache_are_compared_number_by_number(cache: Path, road: Path) -> None:
    folder = snapshot(cache, road)
    weights = load_file(road.parent / "base" / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"note": "another file, the same numbers"})
    base = base_at(road.parent / "base")
    assert weights_difference(base, HubClient(reachable=False)) is None
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-6
    save_file(weights, folder / "model.safetensors")
    assert (
        weights_difference(base, HubClient(reachable=False))
        == "model.norm.weight holds other numbers"
    )
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors")
    assert (
        weights_difference(base, HubClient(reachable=False))
        == "model.norm.weight has another shape"
    )
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors")
    assert (
        weights_difference(base, HubClient(reachable=False))
        == "only one of them has model.norm.weight"
    )


def test_a_base_from_the_hub_is_itself() -> None:
    base = Base(root=Root(reference="acme/base", revision=None), id="acme/base", revision=COMMIT)
    assert weights_difference(base, HubClient(reachable=False)) is None


def source(name: str, *, hub_id: str | None = None, sampled: bool = False) -> DataSource:
    return DataSource(
        stage="sft", label=name, hub_id=hub_id, configuration=None, split="train", revision=None,
        made_by=None, sampled=sampled, sha256=None, rows=1, kept_rows=1, modes={},
    )  # fmt: skip


def test_licenses_come_from_the_hub_then_from_what_is_said() -> None:
    hub = knowing("acme/rows", facts(license="cc-by-4.0"), kind="dataset")
    sources = [source("rows", hub_id="acme/rows"), source("mine"), source("made", sampled=True)]
    known = licenses([], sources, hub, {})
    assert known == {"acme/rows": "cc-by-4.0", "mine": None}
    said = said_licenses(known, {"mine": "MIT"}, {"mine": "gpl-3.0", "acme/rows": "cc0-1.0"})
    assert said == {"acme/rows": "cc0-1.0", "mine": "mit"}, "an option wins over the card"
    with_teacher = licenses([], sources, hub, {"big": None})
    assert said_licenses(with_teacher, {"big": "mit"}, {})["big"] == "mit", "of the whole"
    with pytest.raises(PublishError, match=r"--license-of big=mit: .*; it has acme/rows, mine"):
        said_licenses(known, {"big": "mit"}, {})


@pytest.mark.parametrize(
    ("path", "is_one"),
    [("acme/rows", True), ("rows.jsonl", False), ("data/rows.jsonl", False), ("/a/b", False), ("stage:data/x.jsonl", False), ("a/b*", False)],
)  # fmt: skip
def test_datasets_of_the_hub_are_told_from_files(path: str, is_one: bool) -> None:
    assert is_hub_id(path) == is_one


@pytest.mark.parametrize(("asked", "sampled"), [({}, True), ({"endpoints": {"big": {}}}, False)])
def test_rows_by_a_model_of_the_pipeline_have_its_license_and_those_of_an_endpoint_their_own(
    asked: dict, sampled: bool
) -> None:
    record = {"metrics": {"pairs": 1, **asked}, "config": {"tasks": ["sums.yaml"], "data": None}}
    pairs = StageRun(path=Path("pairs"), name="pairs", kind="pairs", record=record)
    config = {"data": {"sources": [{"path": "stage:pairs/pairs.jsonl"}]}}
    apo = StageRun(path=Path("apo"), name="apo", kind="preference", record={"config": config})
    (source,) = data_sources(Lineage(run=apo, stages=(pairs, apo), evaluations=()))
    assert (source.made_by, source.sampled) == ("pairs", sampled)
