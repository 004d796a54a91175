"""The fresh process: it has no dualign, gives the run's logits, and what is broken is told."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from dualign.models.loading import load_checkpoint
from dualign.models.logits import logits_of
from dualign.publish.checklist import run_checks
from dualign.publish.checks import isolated_loader
from dualign.publish.checks.load_test import (
    LoadTestResult,
    PromptLogits,
    check_modes,
    run_load_test,
)
from dualign.publish.lineage import read_lineage
from dualign.publish.release import LoadTestAnswer
from dualign.switch import Switch


def answer(
    mode: str, *, closed: bool = True, leaked: bool = False, text: str = "3"
) -> LoadTestAnswer:
    return LoadTestAnswer(
        question="1+2", mode=mode, thinking=None, answer=text, closed=closed, leaked=leaked, finished=True
    )  # fmt: skip


def asked(answers: list[LoadTestAnswer]) -> LoadTestResult:
    return LoadTestResult(run_dir=Path(), answers=tuple(answers))


def test_two_modes_with_one_prompt_are_no_modes() -> None:
    prompts = tuple(
        PromptLogits(text=text, mode=mode, ids=(1,), logits_BTV=torch.zeros(1, 1, 1))
        for text, mode in (("a", "think"), ("b", "think"), ("b", "no_think"))
    )
    test = replace(asked([answer("think"), answer("no_think")]), prompts=prompts)
    outcome = check_modes(test)
    assert outcome.state == "failed"
    assert "both modes have the same prompt. Tried: the variables" in outcome.message
    assert "Set switch in the stage that trained it" in outcome.message


def test_both_modes_have_to_answer() -> None:
    good = [answer("think"), answer("think", closed=False), answer("no_think"), answer("no_think")]
    assert check_modes(asked(good)).state == "ok", "one of two think blocks may stay open"
    for bad, message in (
        ([answer("think", closed=False), answer("no_think")], "1 of 1 answers don't close their think block"),
        ([answer("think", text=""), answer("no_think")], "1 of 1 answers don't close their think block and answer"),
        ([answer("think"), answer("no_think", leaked=True)], "in no_think mode 1 of 1 answers hold a think block"),
        ([answer("think"), answer("no_think", text="")], "in no_think mode 1 of 1 answers are empty"),
    ):  # fmt: skip
        found = check_modes(asked(bad))
        assert found.state == "failed" and message in found.message


def test_questions_are_those_of_the_evaluation(road: Path) -> None:
    for stage in ("merged", "folded"):  # folded wasn't measured; those beside it were
        questions, limit = read_lineage(road / stage).questions()
        assert questions == ["What is 1+2?"] and limit == 30


def test_dualign_can_not_be_imported_in_the_fresh_process(tmp_path: Path) -> None:
    code = f"""
import runpy
main = runpy.run_path({isolated_loader.__file__!r})["main"]
try:
    main("nowhere.json")
except FileNotFoundError:
    import dualign
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "ModuleNotFoundError: import of dualign halted" in done.stderr


def test_other_weights_than_the_runs_are_found(road: Path, tmp_path: Path) -> None:
    """Their logits as the fresh process would give them; it is the same model class."""
    staged = shutil.copytree(road / "merged", tmp_path / "staged")
    weights = load_file(staged / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.01
    save_file(weights, staged / "model.safetensors", {"format": "pt"})
    ids = AutoTokenizer.from_pretrained(staged)("What is 1+2?")["input_ids"]
    states = []
    for folder in (road / "merged", staged):
        logits_BTV = logits_of(load_checkpoint(folder, dtype=torch.float32), torch.tensor([ids]))
        prompt = PromptLogits(
            text="What is 1+2?", mode="think", ids=tuple(ids), logits_BTV=logits_BTV
        )
        test = LoadTestResult(run_dir=road / "merged", dtype="float32", prompts=(prompt,))
        states.append({check.name: check for check in run_checks("load", test)}["logits"])
    assert [check.state for check in states] == ["ok", "failed"]
    assert (
        "the staged files give other logits than the run: a logit differs by" in states[1].message
    )


@pytest.mark.slow
def test_what_does_not_load_is_told_in_one_line(road: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    shutil.copytree(road / "merged", staged)
    (staged / "config.json").write_text("{}")
    test = run_load_test(read_lineage(road / "merged"), staged, adapter=None, base=None)
    checks = run_checks("load", test)
    assert [check.state for check in checks] == ["failed", "skipped", "skipped"]
    assert checks[0].message.startswith("the staged files don't load in a fresh process: ")
    assert "\n" not in checks[0].message


@pytest.mark.slow
def test_the_fresh_process_asks_by_the_switch_that_is_named(road: Path) -> None:
    words = Switch(think={"system": "Think."}, no_think={"enable_thinking": False})
    lineage = read_lineage(road / "merged")
    test = run_load_test(lineage, road / "merged", adapter=None, base=None, switch=words)
    texts = {prompt.mode: prompt.text for prompt in test.prompts}
    assert "Think." in texts["think"] and "Think." not in texts["no_think"]


@pytest.mark.slow
def test_a_missing_tensor_is_told(road: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    shutil.copytree(road / "merged", staged)
    weights = load_file(staged / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, staged / "model.safetensors", {"format": "pt"})
    test = run_load_test(read_lineage(road / "merged"), staged, adapter=None, base=None)
    checks = run_checks("load", test)
    assert checks[0].state == "failed" and "missing keys: model.norm.weight" in checks[0].message
