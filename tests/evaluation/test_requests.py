"""How a problem is asked: by the model's own template, with the functions that it may call."""

from pathlib import Path

from dualign.evaluation.requests import render_question
from dualign.generation.responders import open_responder
from dualign.tasks.base import Problem

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
