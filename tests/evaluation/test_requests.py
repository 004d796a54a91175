"""How a problem is asked: by the model's own template, with the functions that it may call."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dualign.errors import EvaluationError
from dualign.evaluation.config import EvalConfig
from dualign.evaluation.requests import build_requests, render_question
from dualign.generation.responders import open_responder
from dualign.tasks.base import Continuation, OwnSampling, Problem
from dualign.tasks.table import load_questions
from tests.data.text.families import PLAIN

ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}


def test_the_functions_of_a_problem_are_in_its_prompt(learnt: Path) -> None:
    settings = {"backend": "transformers", "dtype": "auto", "batch_tokens": 900}
    responder = open_responder(str(learnt), **settings, label="test")
    turns = ({"role": "user", "content": "What is 1+2?"},)
    plain = Problem(id="0", messages=turns, expected="3", extra={})
    with_tools = Problem(id="0", messages=turns, expected="3", extra={}, tools=(ADD,))
    texts = [
        render_question(responder, problem, "think", None).text for problem in (plain, with_tools)
    ]
    assert ['"add"' in text for text in texts] == [False, True]


def test_a_template_that_prints_no_functions_is_refused(learnt: Path, tmp_path: Path) -> None:
    shutil.copytree(learnt, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").write_text(PLAIN)
    settings = {"backend": "transformers", "dtype": "auto", "batch_tokens": 900}
    responder = open_responder(str(tmp_path / "plain"), **settings, label="test")
    turns = ({"role": "user", "content": "What is 1+2?"},)
    problem = Problem(id="0", messages=turns, expected="3", extra={}, tools=(ADD,))
    with pytest.raises(EvaluationError, match=r"doesn't print the functions .* \(add\)"):
        render_question(responder, problem, "think", None)


def test_samples_and_repeats_share_no_answer(learnt: Path, task_file: Path) -> None:
    """A harness's task may ask a prompt several times for one verdict, and a stage for several."""
    settings = {"backend": "transformers", "dtype": "auto", "batch_tokens": 900}
    responder = open_responder(str(learnt), **settings, label="test")
    config = EvalConfig(tasks=(str(task_file),), samples=3, temperature=0.6)
    ((task, problems),) = load_questions(config.tasks)
    own = OwnSampling(max_new_tokens=8, repeats=3)
    problems = tuple(replace(problem, sampling=own) for problem in problems)
    items = build_requests(responder, [(task, problems)], config, name="m", seed=1).items
    asked = [request for item in items for request in item.asked]
    assert len(items) == 2 * 3 * len(problems)
    assert len({request.key for request in asked}) == len(asked) == 3 * len(items)
    assert len({request.seed for request in asked}) == len(asked)


def test_texts_that_are_scored_pass_for_no_answer_to_the_same_prompt(
    learnt: Path, task_file: Path
) -> None:
    settings = {"backend": "transformers", "dtype": "auto", "batch_tokens": 900}
    responder = open_responder(str(learnt), **settings, label="test")
    config = EvalConfig(tasks=(str(task_file),))
    ((task, problems),) = load_questions(config.tasks)
    scored = tuple(
        replace(problem, choices=(Continuation(text="3", messages=problem.messages),))
        for problem in problems
    )
    written, unwritten = (
        [
            item.answer
            for item in build_requests(responder, [(task, rows)], config, name="m", seed=1).items
        ]
        for rows in (problems, scored)
    )
    alike = [first.key == second.key for first, second in zip(written, unwritten, strict=True)]
    # Think mode's trace is written for both, and is the same.
    assert alike == [True] * len(problems) + [False] * len(problems)
    assert [answer.prompt for answer in written] == [answer.prompt for answer in unwritten]
