"""Suites: one word for tasks, settings and published figures."""

from itertools import islice
from pathlib import Path

import pytest

from dualign.errors import ConfigError, EvaluationError
from dualign.recipe import load_recipe
from dualign.tasks.suites import suite_names, suite_notes, suite_record, with_suite
from dualign.tasks.table import files_of, listing, load_reference, load_tasks, source_of

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
    long = ["long:needle@4k", "long:needle@8k"]
    assert with_suite({"suite": "languages", "tasks": long})["tasks"][-2:] == long
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
    count, *lines = str(refused.value).splitlines()
    assert count.startswith("3 of 4 tasks can't be had")
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
    names = [name for name, _ in suite_names()]
    lines = islice(listing(""), len(names))  # those before it reads lm-eval's index
    assert [line.split()[:2] for line in lines] == [["--suite", name] for name in names]


def test_rows_in_a_file_take_the_place_of_the_suites(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1?", "answer": "2"}')
    more = "tasks: ['hub:aime25@rows.jsonl']\n"
    file = recipe(tmp_path, "smollm3", more)
    (entry,) = load_recipe(file, []).stages
    assert entry.config.tasks[0] == f"hub:aime25@{tmp_path / 'rows.jsonl'}"
    assert len(entry.config.tasks) == len(SMOLLM3["tasks"])
    assert not any(task == "hub:aime25" for task in entry.config.tasks)
    assert files_of(entry.config.tasks[0]) == [tmp_path / "rows.jsonl"], "whose bytes are hashed"
    assert files_of("bfcl:simple") == files_of("long:needle@4k") == []


@pytest.mark.parametrize("suite", ["quick", "languages"])
def test_a_suite_without_data_sets_can_be_asked_anywhere(suite: str) -> None:
    references = with_suite({"suite": suite})["tasks"]
    assert {source_of(reference) for reference in references} <= {"words", "long"}
    names = {
        reference: [task.name for task in load_reference(reference)] for reference in references
    }
    record = suite_record(suite, names, {})
    assert all(benchmark["tasks"] for benchmark in record["benchmarks"])
