"""Quantized copies on the Hub: GGUF files and checkpoints in fewer bits, of weights that are there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from dualign.errors import PublishError
from dualign.export.export import export
from dualign.hashing import hashes_of, sha256
from dualign.publish.hub.metadata import HubClient, RepoMetadata
from dualign.publish.publish import prepare_export
from dualign.publish.release import PublishRequest, StagedRelease
from tests.processes import once

COMMIT = "b" * 40
OF = "ada/tiny"


def ask(folder: Path, **more: object) -> PublishRequest:
    return PublishRequest(run_dir=folder, repo_id="ada/tiny-copy", **{"quantized_of": OF, **more})


def hub_with(weights: Path, license: str = "gemma") -> HubClient:
    hashes = {file.name: sha256(file) for file in weights.glob("*.safetensors")}
    known = RepoMetadata(commit=COMMIT, license=license, languages=("en",), sha256=hashes)
    answers = dict.fromkeys((("model", OF, None), ("model", OF, COMMIT)), known)
    return HubClient(reachable=False, answers=answers)


ANSWERS = [{"mode": mode, "tokens": 8, "agreed": 7} for mode in ("think", "no_think")]


@pytest.fixture(scope="session")
def gguf(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged stage as a GGUF file, with the record of a check: llama.cpp has no such tokenizer."""

    def make(folder: Path) -> None:
        export(str(road / "merged"), folder / "gguf", types=["f16"], runtime=None)
        record = json.loads((folder / "gguf" / "export.json").read_text())
        record["files"][0]["check"] = {"conversations": 7, "answers": ANSWERS}
        (folder / "gguf" / "export.json").write_text(json.dumps(record))

    return once(tmp_path_factory, "published-gguf", make) / "gguf"


@pytest.fixture
def half(road: Path, tmp_path: Path) -> Path:
    """The merged stage in half the bits, with the record of a comparison."""
    out = tmp_path / "half"
    model = AutoModelForCausalLM.from_pretrained(road / "merged", dtype=torch.bfloat16)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(road / "merged" / name, out)
    write_record(out, road / "merged")
    return out


def write_record(out: Path, model: Path, beyond: tuple[str, ...] = ()) -> None:
    rate = {"before": 0.9, "after": 0.8, "change": {"value": -0.1, "low": -0.2, "high": 0.0}}
    read = {"kl": 0.0123, "agreement": 0.99, "tokens": 80}
    modes = [
        {"mode": mode, "answers": 16, "accuracy": rate, "closed": closed, "unleaked": rate}
        | {"trace": closed and read, "answer": read}
        for mode, closed in (("think", rate), ("no_think", None))
    ]
    record = {
        "schema": 1,
        "dualign": "0.1.0",
        "model": str(model),
        "weights": hashes_of(model.glob("*.safetensors")),
        "type": "bf16",
        "files": [{"file": "model.safetensors", "sha256": sha256(out / "model.safetensors")}],
        "calibration": {
            "modes": {
                mode: {"available": 9, "rows": rows, "tokens": 80}
                for mode, rows in (("think", 5), ("no_think", 3))
            }
        },
        "both_modes": {"questions": "tasks sums", "modes": modes, "beyond": list(beyond)},
    }
    (out / "export.json").write_text(json.dumps(record))


def staged(request: PublishRequest, hub: HubClient, tmp_path: Path) -> StagedRelease:
    folder = tmp_path / "staged"
    folder.mkdir()
    return prepare_export(request, folder, hub, None)


def states(result: StagedRelease) -> dict[str, str]:
    return {check.name: check.state for check in result.checks}


def test_gguf_files_go_with_a_card_that_names_their_weights(
    gguf: Path, road: Path, tmp_path: Path
) -> None:
    result = staged(ask(gguf), hub_with(road / "merged"), tmp_path)
    assert result.failed == [], result.checks
    assert "| merged-F16.gguf | f16 |" in result.card and "| 7/8 | 7/8 |" in result.card
    names = ["Modelfile", "README.md", "export.json", "merged-F16.gguf"]
    assert sorted(result.files) == names
    card = ModelCard(result.card).data
    assert (card.base_model, card.base_model_relation) == (OF, "quantized")
    assert (card.license, card.library_name, card.language) == ("gemma", "gguf", ["en"])
    assert "gguf" in card.tags
    record = json.loads((tmp_path / "staged" / "export.json").read_text())
    assert record["model"] == OF and str(road) not in json.dumps(record)
    assert record["hashes"]["merged-F16.gguf"] == sha256(gguf / "merged-F16.gguf")
    assert record["published"]["quantized_of"] == {"id": OF, "revision": COMMIT}
    assert not result.is_outdated("other.gguf"), "those of another export stay"


def test_an_importance_matrix_goes_along_and_is_no_model(
    gguf: Path, road: Path, tmp_path: Path
) -> None:
    copy, name = tmp_path / "gguf", "merged-imatrix.gguf"
    shutil.copytree(gguf, copy)
    writer = GGUFWriter(copy / name, "imatrix")
    writer.add_tensor("x.in_sum2", np.ones(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    record = json.loads((copy / "export.json").read_text())
    record["importance"] = {"file": name, "sha256": sha256(copy / name)}
    (copy / "export.json").write_text(json.dumps(record))
    result = staged(ask(copy), hub_with(road / "merged"), tmp_path)
    assert result.failed == [] and name in result.files, result.checks
    assert "llama-server --model merged-F16.gguf" in result.card


def test_a_checkpoint_in_fewer_bits_is_loaded_and_its_comparison_told(
    half: Path, road: Path, tmp_path: Path
) -> None:
    result = staged(ask(half), hub_with(road / "merged"), tmp_path)
    assert result.failed == [], result.checks
    assert states(result)["loads"] == states(result)["both_modes"] == "ok"
    assert "| think | 16 | 90.0 -&gt; 80.0; (-10.0 \\[-20.0, +0.0\\]) |" in result.card
    assert "Calibrated on rows of both modes: think 5, no" in result.card
    assert "0.0123 | 0.0123 |" in result.card and "Asked: tasks sums." in result.card
    assert "### transformers" in result.card and "convert_hf_to_gguf" not in result.card
    assert result.is_outdated("adapter_config.json")


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("worse", "both_modes", "think: KL 0.5 nats a token"),
        ("other bytes", "files", "model.safetensors isn't the file that was exported and checked"),
        ("other weights", "base_weights", "ada/tiny holds other weights than sft2: model.safetensors"),
        ("gone", "base_weights", "isn't there any more to be compared with ada/tiny"),
        ("out of reach", "base_weights", "the Hub can't be reached, so it isn't known whether ada/tiny holds"),
        ("no record", "base_weights", "no export.json says what it was made from"),
        ("license", "license", "card.license: apache-2.0 doesn't keep what ada/tiny (gemma) asks"),
        ("token", "secrets", "export.json:"),
        ("pickle", "files", "model.safetensors is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_copy_is_named(
    fault: str, check: str, message: str, half: Path, road: Path, tmp_path: Path
) -> None:
    """Only what loads no model: the checks before and after are those of a run directory."""
    hub = hub_with(road / "merged")
    if fault == "worse":
        write_record(half, road / "merged", beyond=("think: KL 0.5 nats a token in traces",))
    elif fault == "other bytes":
        with (half / "model.safetensors").open("ab") as file:
            file.write(b" ")
    elif fault == "other weights":
        other = tmp_path / "sft2"
        shutil.copytree(road.parent / "base", other)
        write_record(half, other)
    elif fault == "gone":
        write_record(half, tmp_path / "gone")
    elif fault == "out of reach":
        hub = HubClient(reachable=False)
    elif fault == "no record":
        (half / "export.json").unlink()
    elif fault == "license":
        shutil.copytree(road / "merged", tmp_path / "out" / "merged")
        card = {"recipe": "gone.yaml", "card": {"license": "apache-2.0"}}
        (tmp_path / "out" / ".card.json").write_text(json.dumps(card))
        write_record(half, tmp_path / "out" / "merged")
    elif fault == "pickle":
        (half / "model.safetensors").rename(half / "pytorch_model.bin")
    elif fault == "token":
        record = json.loads((half / "export.json").read_text())
        (half / "export.json").write_text(json.dumps(record | {"note": "hf_" + "a" * 34}))
    # Nothing is loaded: transformers would refuse the type of the model.
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    result = staged(ask(half), hub, tmp_path)
    found = {entry.name: entry for entry in result.checks}
    assert found[check].state == "failed" and message in found[check].message
    assert found["loads"].state == "skipped"


def test_a_folder_that_is_no_export_is_refused(road: Path, gguf: Path, tmp_path: Path) -> None:
    hub = hub_with(road / "merged")
    for request, message in (
        (ask(gguf, quantized_of=None), "say which repository has the weights"),
        (ask(gguf, quantized_of="tiny"), "--quantized-of tiny: expected a hub id"),
        (ask(gguf, quantized_of="ada/tiny-copy"), "is the repository of the weights"),
        (ask(gguf, contents="both"), "--what: is for a run directory"),
        (ask(tmp_path), "it has neither .gguf files nor a config.json"),
    ):
        with pytest.raises(PublishError, match=message):
            prepare_export(request, tmp_path / "none", hub, None)


def test_gguf_files_that_were_never_loaded_or_are_cut_short_are_told(
    gguf: Path, road: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "gguf"
    shutil.copytree(gguf, copy)
    record = json.loads((copy / "export.json").read_text())
    record["files"][0]["check"] = None
    whole = (copy / "merged-F16.gguf").read_bytes()
    (copy / "merged-F16.gguf").write_bytes(whole[: len(whole) // 2])
    (copy / "export.json").write_text(json.dumps(record))
    result = staged(ask(copy), hub_with(road / "merged"), tmp_path)
    assert set(result.failed) == {"files", "loads"}
    (loads,) = (check for check in result.checks if check.name == "loads")
    assert "merged-F16.gguf: not a whole GGUF file" in loads.message
    assert "never loaded in llama.cpp and compared with transformers" in loads.message


def test_what_cannot_be_loaded_here_is_said_and_may_be_allowed(
    half: Path, road: Path, tmp_path: Path
) -> None:
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    result = staged(ask(half), hub_with(road / "merged"), tmp_path)
    assert result.failed == ["loads"]
    (loads,) = (check for check in result.checks if check.name == "loads")
    assert "gptqmodel isn't installed here" in loads.message
    assert "pip install torch transformers gptqmodel\n" in result.card
    (tmp_path / "again").mkdir()
    allowed = staged(
        ask(half, allow=frozenset(["loads"])), hub_with(road / "merged"), tmp_path / "again"
    )
    assert allowed.failed == [] and states(allowed)["loads"] == "allowed"
