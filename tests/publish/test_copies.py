"""Copies in fewer bits beside the weights: what goes, what an earlier publication left, what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dualign.errors import PublishError
from dualign.hashing import hashes_of, sha256
from dualign.publish.card.copies import copy_texts
from dualign.publish.checklist import run_checks
from dualign.publish.copies import read_copies, stage_copies
from dualign.publish.earlier import earlier_copies
from dualign.publish.hub.metadata import HubClient
from dualign.publish.hub.repository import RemoteFile
from dualign.publish.publish import examine, finish
from dualign.publish.release import PublishRequest, StagedRelease
from dualign.publish.staging import stage_files
from tests.publish import test_exported

gguf, half = test_exported.gguf, test_exported.half
Ask = Callable[..., PublishRequest]
HUB = HubClient(reachable=False)


def staged(request: PublishRequest, folder: Path) -> StagedRelease:
    """What goes, without what tells of the weights alone: doctor, and loading them."""
    folder.mkdir()
    release = examine(request, HUB)
    exports = read_copies(release)
    stage_files(release, folder)
    copies = stage_copies(exports, release, folder, "not looked up")
    return finish(release, folder, [], copies=copies)


@pytest.fixture
def of_weights(gguf: Path, road: Path, tmp_path: Path) -> Path:
    """The GGUF export, as the weights are that it was made from."""
    shutil.copytree(gguf, tmp_path / "gguf")
    record = json.loads((gguf / "export.json").read_text())
    assert record["weights"] == hashes_of([road / "merged" / "model.safetensors"])
    return tmp_path / "gguf"


def unloadable(folder: Path) -> Path:
    """Nothing is loaded, which takes seconds: transformers would refuse the type of the model."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    return folder


def test_gguf_files_lie_at_the_top_and_a_checkpoint_in_a_folder_of_its_type(
    road: Path, of_weights: Path, half: Path, asked: Ask, tmp_path: Path
) -> None:
    folder = tmp_path / "staged"
    request = asked(road / "merged", exports=(of_weights, unloadable(half)))
    result = staged(request, folder)
    assert result.failed == ["code (bf16)"]
    copies = {"merged-F16.gguf", "Modelfile", "export.json"} | {
        f"bf16/{name}" for name in ("model.safetensors", "config.json", "export.json")
    }
    assert copies < set(result.files)
    record = json.loads((folder / "run.json").read_text())
    gguf, checkpoint = record["published"]["copies"]
    assert (gguf["folder"], checkpoint["folder"], checkpoint["method"]) == ("", "bf16", "bf16")
    assert {*gguf["files"], *checkpoint["files"]} < record["files"].keys()
    assert record["files"]["bf16/model.safetensors"] == sha256(half / "model.safetensors")
    texts = "".join(file.read_text() for file in folder.rglob("export.json"))
    assert str(road) not in texts and '"model": "someone/tiny"' in texts
    card = result.card
    assert "| merged-F16.gguf | f16 |" in card and "0.0123 | 0.0123 |" in card
    assert 'AutoModelForCausalLM.from_pretrained("someone/tiny", subfolder="bf16")' in card
    assert 'hf download someone/tiny --include "bf16/*"' in card
    assert "convert_hf_to_gguf" not in card, "there are GGUF files already"
    assert copy_texts(card).keys() == {"", "bf16"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("other weights", "base_weights (gguf): gguf was made from other weights: base/model.safe"),
        ("no hashes", "base_weights (gguf): gguf doesn't say which weights it was made from"),
        ("other bytes", "files (gguf): merged-F16.gguf isn't the file that was exported"),
        ("worse", "both_modes (gguf): merged-F16.gguf: no_think: KL 0.5"),
    ],
)
def test_what_is_wrong_with_a_copy_is_named(
    fault: str, message: str, road: Path, of_weights: Path, asked: Ask, tmp_path: Path
) -> None:
    record = json.loads((of_weights / "export.json").read_text())
    if fault == "other weights":
        record["weights"] = hashes_of([road.parent / "base" / "model.safetensors"])
    elif fault == "no hashes":
        del record["weights"]
    elif fault == "worse":
        beyond = ["no_think: KL 0.5 nats a token in answers"]
        record["files"][0]["both_modes"] = {"questions": "tasks sums", "beyond": beyond}
    else:
        with (of_weights / "merged-F16.gguf").open("ab") as file:
            file.write(b" ")
    (of_weights / "export.json").write_text(json.dumps(record))
    release = examine(asked(road / "merged", exports=(of_weights,)), HUB)
    (tmp_path / "staged").mkdir()
    copies = stage_copies(read_copies(release), release, tmp_path / "staged", "not looked up")
    failed = [f"{c.name}: {c.message}" for c in copies.checks if c.state == "failed"]
    assert len(failed) == 1 and failed[0].startswith(message)
    if fault in ("worse", "no hashes"):
        allowed = frozenset(["both_modes", "base_weights"])
        release = replace(release, request=replace(release.request, allow=allowed))
        (tmp_path / "again").mkdir()
        copies = stage_copies(read_copies(release), release, tmp_path / "again", "not looked up")
        assert "allowed" in {check.state for check in copies.checks}
        assert "Published although the check" in copies.texts[""]


def test_an_adapter_has_no_copies_and_a_place_holds_one(
    road: Path, of_weights: Path, asked: Ask, tmp_path: Path
) -> None:
    for run, exports, message in (
        ("apo", (of_weights,), "an adapter is published, and copies lie beside weights"),
        ("merged", (of_weights, of_weights), "would both be the GGUF files at the top"),
        ("merged", (road,), "it has neither .gguf files nor a config.json"),
        ("merged", (tmp_path / "none",), "none: no such folder"),
    ):
        with pytest.raises(PublishError, match=message):
            read_copies(examine(asked(road / run, exports=exports), HUB))


WEIGHTS = {"model.safetensors": "a" * 64}
COPY = {"m-Q8_0.gguf": "b" * 64, "Modelfile": "c" * 64}
RECORD = {
    "files": WEIGHTS | COPY,
    "published": {"copies": [{"folder": "", "method": "gguf", "files": list(COPY)}]},
}


def remote(**sha256: str | None) -> dict[str, RemoteFile]:
    hashes = {"m-Q8_0.gguf": "b" * 64, "Modelfile": None, "mine.gguf": "e" * 64, **sha256}
    return {name: RemoteFile(size=1, blob="", sha256=sha) for name, sha in hashes.items()}


def test_copies_on_the_hub_stay_with_their_weights_and_go_with_others() -> None:
    now = {"replaced": (), "described": [""]}
    same = earlier_copies(RECORD, remote(), WEIGHTS, **now)
    assert [copy.files for copy in same.kept] == [("m-Q8_0.gguf", "Modelfile")]
    assert (same.hashes, same.outdated, same.faults) == (COPY, (), ())
    other = earlier_copies(RECORD, remote(), {"model.safetensors": "d" * 64}, **now)
    assert (other.kept, other.outdated) == ((), ("m-Q8_0.gguf", "Modelfile")), "not mine.gguf"
    assert other.why == "made from other weights"
    for staged_copy, gone in (({}, tuple(COPY)), ({"Modelfile": "c" * 64}, ("m-Q8_0.gguf",))):
        goes = WEIGHTS | staged_copy
        again = earlier_copies(RECORD, remote(), goes, replaced=[""], described=[""])
        assert (again.kept, again.outdated) == ((), gone), "what goes again isn't deleted"
        for card_only, state in ((False, "ok"), (True, "failed")):
            request = PublishRequest(run_dir=Path(), repo_id="a/b", card_only=card_only)
            (check,) = run_checks("earlier", again, request)
            assert check.state == state and gone[0] in check.message
    for record in ({}, {"files": WEIGHTS}, {"published": {"copies": []}}):
        nothing = earlier_copies(record, remote(), WEIGHTS, **now)
        assert (nothing.kept, nothing.outdated, nothing.faults) == ((), (), ())


def test_a_copy_holds_the_template_that_it_was_made_with() -> None:
    template = {"chat_template.jinja": "1" * 64}
    record = RECORD | {"files": RECORD["files"] | template}
    now = {"replaced": (), "described": [""]}
    assert not earlier_copies(record, remote(), WEIGHTS | template, **now).faults
    other = WEIGHTS | {"chat_template.jinja": "2" * 64}
    (fault,) = earlier_copies(record, remote(), other, **now).faults
    assert fault.startswith("chat_template.jinja isn't the one that m-Q8_0.gguf, Modelfile on")
    assert not earlier_copies(record, remote(), other, replaced=[""], described=[""]).faults


@pytest.mark.parametrize("record", [{"files": ["m.gguf"]}, {"published": "2026-11-29"}])
def test_run_json_of_another_tool_names_no_copies(record: dict) -> None:
    earlier = earlier_copies(record, remote(), WEIGHTS, replaced=(), described=())
    assert (earlier.kept, earlier.outdated, earlier.faults) == ((), (), ())


@pytest.mark.parametrize("copies", [5, "gguf", [{"folder": ""}]])
def test_copies_in_another_form_are_refused(copies: object) -> None:
    record = RECORD | {"published": {"copies": copies}}
    with pytest.raises(PublishError, match=r"published\.copies isn't as"):
        earlier_copies(record, remote(), WEIGHTS, replaced=(), described=())


def test_a_copy_that_was_changed_on_the_hub_is_not_told_of() -> None:
    gone = {name: file for name, file in remote().items() if name != "Modelfile"}
    for files, described, message in (
        (gone, [""], "Modelfile is gone from the Hub"),
        (remote(**{"m-Q8_0.gguf": "f" * 64}), [""], "m-Q8_0.gguf on the Hub isn't what was"),
        (remote(), [], "the card on the Hub doesn't tell of m-Q8_0.gguf, Modelfile any more"),
    ):
        (fault,) = earlier_copies(RECORD, files, WEIGHTS, replaced=(), described=described).faults
        assert fault.startswith(message) and "--with" in fault
