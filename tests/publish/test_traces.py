"""A model that was trained on a teacher's traces says so, and has to keep the teacher's license."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dualign import engine
from dualign.cli.main import main
from dualign.publish.card.training import hyper_parameters
from dualign.publish.hub.metadata import HubClient
from dualign.publish.license import combine
from dualign.publish.lineage import Lineage
from dualign.publish.sources import data_sources, licenses, said_licenses, writer_licenses
from dualign.recipe import load_recipe
from dualign.report.runs import StageRun, read_stage
from tests.generation.servers import Proxy
from tests.sft.sums import LINES, Teacher, recipe, write

TRAIN = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_checkpointing": False}


def make_traces(folder: Path, *more: dict[str, Any]) -> str:
    """Run a stage of traces by a server, and the stages after it; return the server's address."""
    rows = write(folder / "sums.jsonl", LINES)
    with Proxy(Teacher()).running() as server:
        model = {"url": server.address, "concurrency": 1}
        file = recipe(folder, rows, model, both_modes=True)
        content = json.loads(file.read_text())
        content["stages"] += more
        file.write_text(json.dumps(content))
        engine.run(load_recipe(file, []), say=lambda text: None)
        return server.address


def test_the_teacher_is_named_and_its_license_asked_for(tmp_path: Path) -> None:
    address = make_traces(tmp_path)
    traces = read_stage(tmp_path / "runs" / "traces")
    config = {"data": {"sources": [{"path": "stage:traces/traces.jsonl"}]}}
    sft = StageRun(path=tmp_path, name="sft", kind="sft", record={"config": config})
    lineage = Lineage(run=sft, stages=(traces, sft), evaluations=())
    shown = hyper_parameters(traces.record)
    assert shown.startswith("rows by tiny; tries 4, choose random, answer row")
    assert address not in shown, "what a server is called at home is nobody's business"
    hub = HubClient(reachable=False)
    options: dict[str, str] = {}
    for said, expected in (
        ({}, None),
        ({"sums": "cc-by-4.0"}, None),
        ({"traces": "llama3.1"}, "llama3.1"),
    ):
        options |= said
        of = licenses([], data_sources(lineage), hub, writer_licenses(lineage, hub))
        of = said_licenses(of, options, {})
        assert of.keys() == {"sums", "traces"}
        assert combine(of).id == expected


def test_a_reviser_is_named_among_those_who_wrote_pairs() -> None:
    teacher = {"url": "http://10.0.0.3/v1", "name": "big"}
    config = {"model": "stage:sft", "revise": {"model": teacher}, "samples": 4}
    shown = hyper_parameters({"kind": "pairs", "config": config})
    assert shown == "rows by sft and big; samples 4"


@pytest.mark.slow
def test_rows_become_traces_become_a_model_with_a_card(
    learnt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    shutil.copytree(learnt, tmp_path / "base")
    data = {"sources": [{"path": "stage:traces/traces.jsonl"}], "max_tokens": 256}
    sft = {"name": "sft", "kind": "sft", "model": str(tmp_path / "base"), "lora": {"r": 2}}
    make_traces(tmp_path, sft | {"data": data, "train": TRAIN})
    runs = tmp_path / "runs"
    modes = {
        entry["mode"]: entry["kept"] for entry in read_stage(runs / "sft").record["rows"]["by"]
    }
    assert modes == {"think": 3, "no_think": 4}
    command = ["publish", str(runs / "sft"), "someone/tiny", "--base", f"acme/base@{'a' * 40}"]
    command += ["--allow", "base_weights", "--license-of", "acme/base=apache-2.0"]
    assert main([*command, "--license-of", "sums=mit"]) == 1
    assert "nothing is known of traces" in " ".join(capsys.readouterr().out.split())
    command += ["--license-of", "sums=mit", "--license-of", "traces=llama3.1"]
    assert main([*command, "--out", str(tmp_path / "copy")]) == 0
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "license: llama3.1" in card
    assert "| traces | traces | rows by tiny; tries 4" in card
    assert "| sft | traces (made by stage traces) | train |" in card
