"""A run directory made ready to be published: what goes, that it loads, and that it says how it was made."""

import hashlib
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign.cli.main import main
from dualign.models.loading import load_checkpoint
from dualign.models.logits import logits_of
from dualign.publish.card.body import Usage, render_usage
from dualign.publish.publish import stale
from dualign.publish.release import PublishRequest
from dualign.publish.show import format_bytes
from dualign.switch import ENABLE_THINKING, Switch


class DryRun(NamedTuple):
    """What `dualign publish` was given and printed, and the copy of the files that it left."""

    words: list[str]
    printed: str
    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())


@pytest.fixture(scope="module")
def both(road: Path, tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    """The stage that has weights and an adapter, published without --yes, a token and a hub."""
    from huggingface_hub import constants

    place = tmp_path_factory.mktemp("both")
    words = ["publish", str(road / "folded"), "someone/tiny", "--license", "apache-2.0", "--public"]
    words += ["--base", f"acme/base@{'a' * 40}", "--allow", "base_weights", "--language", "en"]
    before = sorted(road.rglob("*"))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(place / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert main([*words, "--out", str(place / "copy")]) == 0
    assert sorted(road.rglob("*")) == before
    return DryRun(words, printed.getvalue(), place / "copy")


def test_a_dry_run_shows_all_and_ends_with_the_command_that_publishes(both: DryRun) -> None:
    for text in (
        "model.safetensors",
        "432.0 kB",
        "# tiny",
        "license: apache-2.0",
        "logits",
        "not checked",
    ):
        assert text in both.printed
    command = shlex.split(both.printed.strip().splitlines()[-1].strip())
    assert sorted(command) == sorted(["dualign", *both.words, "--yes"])


def test_nothing_but_the_checkpoint_and_what_tells_of_it_goes(both: DryRun) -> None:
    files = [path for path in both.folder.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(both.folder)) for path in files) == [
        "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "chat_template.jinja", "config.json",
        "figures/loss-folded.png", "figures/loss-sft.png", "figures/margins-folded.png", "generation_config.json",
        "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_weights_and_adapter_load_by_the_folder_alone(both: DryRun, road: Path) -> None:
    out = both.folder
    ids = torch.arange(3, 40)[None]
    expected = logits_of(load_checkpoint(road / "folded", dtype=torch.float32), ids)
    whole = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(logits_of(whole, ids), expected)
    base = AutoModelForCausalLM.from_pretrained(road.parent / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(out), subfolder="adapter")
    assert torch.allclose(logits_of(adapted, ids), expected, atol=1e-4)


def test_the_adapter_names_its_base_by_id_and_commit(both: DryRun) -> None:
    config = json.loads((both.folder / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/base", "a" * 40)


def test_run_json_has_the_hash_of_every_file_and_no_place_of_this_machine(
    both: DryRun, road: Path
) -> None:
    out, record = both.folder, both.record
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {"run.json"}
    assert record["files"].keys() == there
    for name, digest in record["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    text = (out / "run.json").read_text() + (out / "README.md").read_text()
    assert str(road.parent) not in text
    assert record["published"]["stages"]["sft"]["config"]["model"] == "acme/base"
    assert record["published"]["stages"]["sft"]["data"][0]["source"] == "stage:data/train.jsonl"
    assert {check["name"] for check in record["published"]["checks"]} >= {"loads", "logits", "modes", "composition"}  # fmt: skip


def test_the_card_says_how_it_was_made_and_what_it_answered(
    both: DryRun,
) -> None:
    card = ModelCard((both.folder / "README.md").read_text())
    assert card.data.license == "apache-2.0" and card.data.language == ["en"]
    assert card.data.base_model_relation == "finetune"
    for words in (
        "## How to use it", "## Training", "| folded | preference | LoRA r 2, alpha 2;", "3 steps",
        "## Data", "made by stage data", "24 of 24", "## Decontamination", "weren't screened", "## Limits", "## Provenance",
        "| What is 1+2? | think |", "![folded: loss by step](figures/loss-folded.png)",
    ):  # fmt: skip
        assert words in card.text, words


def test_the_model_answers_in_both_modes_in_the_fresh_process(
    both: DryRun,
) -> None:
    think, quick = both.record["published"]["answers"]
    assert (think["mode"], think["closed"], think["answer"]) == ("think", True, "3")
    assert (quick["mode"], quick["leaked"], quick["answer"]) == ("no_think", False, "3")


def test_the_results_of_an_evaluated_model_are_in_the_card(
    road: Path, asked: Callable[..., PublishRequest], tmp_path: Path
) -> None:
    from dualign.publish.hub.metadata import HubClient
    from dualign.publish.publish import examine, finish, stage_and_check

    hub = HubClient(reachable=False)
    subject = examine(asked(road / "merged"), hub)
    found = stage_and_check(subject, tmp_path, hub)
    prepared = finish(subject, tmp_path, found)
    card = ModelCard(prepared.card)
    assert [(result.dataset_config, result.metric_value) for result in card.data.eval_results] == [
        ("think", 100.0),
        ("no_think", 25.0),
    ]
    assert "| sums | acme/base | 4 |" in card.text and "| sums | merged | 4 |" in card.text
    assert "### Thinking budgets" in card.text and "\n| sums | none | 100.0 " in card.text
    assert "![sums: accuracy by thinking budget (4: " in card.text
    assert "figures/budgets-0.png" in prepared.files
    assert "linear: 0.9 x apo + 0.1 x sft" in card.text
    assert "merged against apo: bought nothing measurable in accuracy" in card.text
    assert "merge" in card.data.tags and "figures/accuracy-sums.png" in prepared.files
    assert json.loads((tmp_path / "metrics.json").read_text())["model"] == "stage:merged"


class Snippet(NamedTuple):
    title: str
    language: str
    code: str


def snippets(usage: Usage) -> list[Snippet]:
    """The code under each heading of the card."""
    blocks = re.findall(r"### (.*?)\n\n```(\w+)\n(.*?)\n```", render_usage(usage), re.DOTALL)
    return [Snippet(*block) for block in blocks]


def test_the_python_of_the_card_runs_as_it_stands(
    both: DryRun, road: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = both.folder
    usage = Usage(
        repo_id=str(out), contents="both", base=str(road.parent / "base"), revision="main", rank=6, question="What is 1+2?",
    )  # fmt: skip
    python = [snippet for snippet in snippets(usage) if snippet.language == "python"]
    assert [entry.title for entry in python] == ["transformers", "peft"]
    for item in python:
        exec(compile(item.code, item.title, "exec"), {})
        think, quick = capsys.readouterr().out.strip().split("</think>")
        assert "one and two" in think and quick.strip().split() == ["3", "3"]


WORDS = Switch(think={"system": "Don't hurry"}, no_think={"system": "Quick", "depth": 0})


def test_the_card_says_how_another_switch_switches() -> None:
    usage = Usage(repo_id="me/it", contents="weights", base="", revision="", rank=0, switch=WORDS)
    text = render_usage(usage)
    assert (
        "Think mode: `Don't hurry` in the system message. "
        "no_think mode: `Quick` in the system message and `depth=0`. The text before" in text
    )
    assert "enable_thinking" not in text and '"chat_template_kwargs": {"depth": 0}' in text
    (python, *_) = snippets(usage)
    assert "{'role': 'system', 'content': 'Quick'}" in python.code
    assert "depth=0, add_generation_prompt=True" in python.code


@pytest.mark.parametrize("switch", [ENABLE_THINKING, WORDS], ids=["usual", "words"])
@pytest.mark.parametrize("what", ["adapter", "weights", "both"])
def test_every_snippet_parses_and_names_the_repository(what: str, switch: Switch) -> None:
    found = snippets(
        Usage(
            repo_id="me/it", contents=what, base="acme/base", revision="main", rank=6, switch=switch
        )
    )
    titles = [item.title for item in found]
    assert ("transformers" in titles) == (what != "adapter")
    assert ("peft" in titles) == (what != "weights") and titles[-2:] == ["vLLM", "llama.cpp"]
    for entry in found:
        assert "me/it" in entry.code
        if entry.language == "python":
            compile(entry.code, entry.title, "exec")
        else:
            done = subprocess.run(["bash", "-n"], input=entry.code, text=True, capture_output=True, check=False)  # fmt: skip
            assert done.returncode == 0, done.stderr


def test_an_adapter_never_leaves_its_top_level_config_beside_weights() -> None:
    there = ("README.md", "adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "notes.md", "figures/old.png", "model-00001-of-00002.safetensors")  # fmt: skip
    assert stale(there, ("README.md", "model.safetensors")) == (
        "adapter_config.json", "adapter_model.safetensors", "figures/old.png",
        "model-00001-of-00002.safetensors", "pytorch_model.bin",
    )  # fmt: skip


def test_sizes_are_for_people() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 538_090_408, 6_150_000_000)] == [
        "0 B", "999 B", "1.0 kB", "538.1 MB", "6.2 GB",
    ]  # fmt: skip


def test_the_tokenizer_staged_is_the_runs(both: DryRun, road: Path) -> None:
    ours, runs = (
        AutoTokenizer.from_pretrained(str(item)) for item in (both.folder, road / "folded")
    )
    assert ours.chat_template == runs.chat_template and ours.eos_token_id == runs.eos_token_id
