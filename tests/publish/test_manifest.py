"""What goes and what stays, by name; and records without this machine."""

import json
from pathlib import Path

import pytest

from dualign.publish.card.training import hyper_parameters
from dualign.publish.lineage import read_lineage
from dualign.publish.manifest import is_published, make_manifest
from dualign.publish.redaction import (
    redact_adapter_config,
    redact_record,
    redact_settings,
    redact_text,
)

STAYS = {
    "optimizer.pt": "training state",
    "trainer_state.json": "training state",
    "checkpoint-25": "training state",
    "checkpoints": "training state",
    "training_args.bin": "training state",
    "notes.pkl": "may be a pickle, which runs code when it is read",
    ".env": "may hold secrets",
    "id_rsa": "may hold secrets",
    "server.pem": "may hold secrets",
    ".cache": "a cache or hidden file",
    "rows.jsonl": "rows of data",
    "log.jsonl": "the training log",
    "modeling_own.py": "code: a model has to load without it",
    "README.md": "the card is made anew",
    "thesis.pdf": "not part of a checkpoint",
}


def test_what_is_no_part_of_a_checkpoint_stays_and_is_named(copied: Path) -> None:
    for name in STAYS:
        (copied / "merged" / name).write_text("")
    plan = make_manifest(read_lineage(copied / "merged"), None)
    assert dict(plan.left_out) == STAYS
    assert not set(STAYS) & set(plan.files)


def test_named_templates_of_a_tokenizer_go(copied: Path) -> None:
    folder = copied / "merged" / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ tools }}")
    plan = make_manifest(read_lineage(copied / "merged"), None)
    assert plan.files["additional_chat_templates/tool_use.jinja"] == folder / "tool_use.jinja"
    assert folder.name not in dict(plan.left_out) and not plan.faults
    assert is_published("additional_chat_templates/tool_use.jinja")
    assert not is_published("additional_chat_templates/x.py")


def test_the_default_is_what_the_run_directory_holds(road: Path) -> None:
    found = {
        name: make_manifest(read_lineage(road / name), None).contents
        for name in ("sft", "apo", "folded", "merged")
    }
    assert found == {"sft": "adapter", "apo": "adapter", "folded": "both", "merged": "weights"}
    assert make_manifest(read_lineage(road / "apo"), "weights").fold


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/x/out/sft", "stage:sft"),
        ("/x/out/data/train.jsonl", "stage:data/train.jsonl"),
        ("/x/base", "acme/base"),
        ("/home/ada/rows.jsonl", "rows.jsonl"),
        ("read /home/ada/rows.jsonl, then stop", "read rows.jsonl, then stop"),
        ("https://example.org/home/x/y", "https://example.org/home/x/y"),
        ("/think", "/think"),
        ("answer on /think or /no_think", "answer on /think or /no_think"),
    ],
)
def test_places_of_this_machine_get_the_names_that_others_know(text: str, clean: str) -> None:
    names = {"/x/out/sft": "stage:sft", "/x/out/data": "stage:data", "/x/base": "acme/base"}
    assert redact_text(text, names) == clean


def test_rows_that_were_screened_out_do_not_leave() -> None:
    record = {"name": "sft", "rows": {"in": 2, "removed": [{"text": "private"}]}, "secret": 1}
    assert redact_record(record, {}) == {"name": "sft", "rows": {"in": 2}}


def test_a_server_that_only_its_network_knows_does_not_leave() -> None:
    public, private = "https://api.openai.com/v1", "http://10.0.0.3:8000/v1"
    config = {"model": {"url": private}, "judge": {"url": public}, "note": "as http://gpu1/v1 said"}
    clean = {"model": {"url": "http://private"}, "judge": {"url": public}}
    assert redact_record({"config": config}, {}) == {
        "config": clean | {"note": "as http://private said"}
    }


def test_settings_lose_the_place_they_were_loaded_from_and_nothing_else() -> None:
    text = json.dumps({"_name_or_path": "/x/base", "vocab_size": 5})
    assert json.loads(redact_settings(text, {})) == {"vocab_size": 5}
    assert redact_settings('{"vocab_size": 5}', {}) == '{"vocab_size": 5}', "to the byte"
    assert redact_settings("not JSON", {}) == "not JSON"


def test_an_adapter_without_a_known_base_names_no_place() -> None:
    text = json.dumps({"base_model_name_or_path": "/home/ada/base", "r": 4})
    made = json.loads(redact_adapter_config(text, base=None, revision=None, names={}))
    assert made == {"base_model_name_or_path": "base", "r": 4}


def test_a_sweep_starts_from_every_model_that_its_merge_names(copied: Path) -> None:
    """A sweep leaves a model as a merge does; its models stand deeper in its settings."""
    record = json.loads((copied / "merged" / "run.json").read_text())
    models = [{"model": "stage:apo", "weight": "$a"}, {"model": "acme/other@v2", "weight": 1}]
    record |= {
        "kind": "sweep",
        "config": {"search": "grid", "vary": {"a": [1]}, "merge": {"models": models}},
    }
    (copied / "merged" / "run.json").write_text(json.dumps(record))
    lineage = read_lineage(copied / "merged")
    assert [(root.reference.rsplit("/", 1)[-1], root.revision) for root in lineage.roots()] == [
        ("base", None),
        ("other", "v2"),
    ]
    assert hyper_parameters(lineage.run.record) == "grid over a"
