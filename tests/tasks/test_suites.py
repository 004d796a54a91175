"""Suites: one word for tasks, settings and published figures."""

from pathlib import Path

import pytest

from dualign.errors import ConfigError, EvaluationError
from dualign.recipe import load_recipe
from dualign.tasks.suites import suite_names, suite_notes, suite_record, with_suite
from dualign.tasks.table import listing, load_tasks, source_of

SMOLLM3 = with_suite({"suite": "smollm3"})


def test_a_suite_becomes_tasks_and_settings() -> None:
    assert SMOLLM3["max_new_tokens"] == 32768
    assert (SMOLLM3["temperature"], SMOLLM3["top_p"]) == (0.6, 0.95)
    assert SMOLLM3["tasks"][:2] == ["hub:aime25", "hub:gsm_plus"]
    assert all(source_of(reference) for reference in SMOLLM3["tasks"])


def test_what_the_stage_says_goes_before_the_suite() -> None:
    own = {"suite": "smollm3", "max_new_tokens": 100, "temperature": 0.0, "tasks": ["mine.yaml"]}
    keys = with_suite(own)
    assert keys["max_new_tokens"] == 100 and keys["tasks"][-1] == "mine.yaml"
    assert keys["temperature"] == 0.0 and "top_p" not in keys, "top_p means nothing when greedy"
    assert with_suite(keys)["tasks"] == keys["tasks"], "filled in once"
    assert with_suite({"tasks": ["a.yaml"]}) == {"tasks": ["a.yaml"]}


def test_the_published_figures_are_those_of_the_card() -> None:
    tasks = {reference: [reference.replace(":", "_")] for reference in SMOLLM3["tasks"]}
    record = suite_record("smollm3", tasks, {"hub_gsm_plus": {"critical thinking": 300}})
    figures = {entry["name"]: entry["published"] for entry in record["benchmarks"]}
    assert len(figures) == 8
    assert figures["AIME 2025"] == {"think": 36.7, "no_think": 9.3}
    assert figures["IFEval"] == {"think": 71.2, "no_think": 76.7}
    notes = list(suite_notes(record))
    assert any(note.startswith("MixEval Hard isn't asked: a judge model") for note in notes)
    assert "hub_gsm_plus leaves out rows: critical thinking (300)." in notes
    assert notes[-1].startswith("Published: HuggingFaceTB/SmolLM3-3B, https://huggingface.co/")


def test_all_that_cannot_be_had_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError) as refused:
        load_tasks(["hub:aime25", "hub:gpqa_diamond", "bfcl:simple", "words:en"])
    lines = str(refused.value).splitlines()
    assert [line.partition(",")[0].partition(" ")[0] for line in lines] == [
        "hub:aime25:",
        "hub:gpqa_diamond:",
        "bfcl:",
    ]


def recipe(folder: Path, suite: str, more: str = "") -> Path:
    file = folder / "eval.yaml"
    file.write_text(f"kind: eval\noutput_dir: out\nmodels: [some/model]\nsuite: {suite}\n{more}")
    return file


def test_a_recipe_with_a_suite_is_one_with_its_tasks_written_out(tmp_path: Path) -> None:
    ((entry,),) = [load_recipe(recipe(tmp_path, "languages"), []).stages]
    stage = entry.config
    assert stage.tasks == tuple(f"words:{code}" for code in ("en", "fr", "es", "de", "it", "pt"))
    assert (stage.suite, stage.max_new_tokens, stage.temperature) == ("languages", 1024, 0.0)
    ((other,),) = [load_recipe(recipe(tmp_path, "languages"), ["max_new_tokens=64"]).stages]
    assert other.config.max_new_tokens == 64


def test_an_unknown_suite_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no suite 'smolm3' \(did you mean 'smollm3'\?\)"):
        load_recipe(recipe(tmp_path, "smolm3"), [])
    lines = [line for line in listing("") if line.startswith("--suite ")]
    assert [line.split()[1] for line in lines] == [name for name, _ in suite_names()]
