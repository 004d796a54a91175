"""A function of the user's own, and what is said of its errors."""

import pytest

from dualign.errors import ConfigError, EvaluationError
from dualign.tasks.base import judge
from dualign.tasks.files import read_task
from dualign.tasks.table import load_questions

CODE = """\
import re

def right(answer, expected):
    if expected is None:
        return bool(re.match("yes", answer))
    return True if answer in expected else (False, "not in the list")

def half(answer, expected):
    return 0.5

def broken(answer, expected):
    return {}["key"]

def leaving(answer, expected):
    raise SystemExit
"""


def questions(folder, function="right", code=CODE, answer=', "answer": ["a", "b"]'):
    (folder / "checks.py").write_text(code)
    (folder / "rows.jsonl").write_text('\n{"prompt": "?"' + answer + "}\n")
    verifier = f"verifier: {{kind: python, file: checks.py, function: {function}}}"
    (folder / "task.yaml").write_text(f"name: t\nrows: rows.jsonl\n{verifier}\n")
    ((task, (problem,)),) = load_questions([folder / "task.yaml"])
    return task, problem


def test_the_function_gets_the_answer_and_what_the_row_expects(tmp_path):
    task, problem = questions(tmp_path)
    assert judge(task, problem, "a")
    assert judge(task, problem, "c").reason == "not in the list"
    (tmp_path / "checks.py").write_text("def right(answer, expected): return answer == 'c'")
    assert judge(task, problem, "c")


def test_what_the_function_does_to_its_list_changes_no_other_verdict(tmp_path):
    code = "def right(answer, expected): return expected.pop() == answer"
    task, problem = questions(tmp_path, code=code)
    assert [judge(task, problem, "b").right for _ in range(3)] == [True] * 3
    assert problem.expected == ["a", "b"]


def test_a_row_needs_no_answer(tmp_path):
    task, problem = questions(tmp_path, answer="")
    assert judge(task, problem, "yes") and not judge(task, problem, "no")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("half", r"checks.py: half returned 0.5; expected True, False, or"),
        ("broken", r"checks.py: broken of 'a' raised KeyError at line 12: 'key'"),
        ("leaving", r"checks.py: leaving of 'a' raised SystemExit at line 15"),
    ],
)
def test_an_error_of_the_function_names_the_row(tmp_path, function, message):
    task, problem = questions(tmp_path, function)
    with pytest.raises(EvaluationError, match=rf"rows\.jsonl:2: {message}"):
        judge(task, problem, "a")


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("rigth", CODE, r"no function 'rigth' .did you mean 'right'"),
        ("right", "import nowhere_to_be_found", r"raised ModuleNotFoundError at line 1"),
        ("right", "x = 1\ndef right(:", "raised SyntaxError at line 2"),
    ],
)
def test_a_file_that_cant_be_used_is_refused_before_anything_is_asked(
    tmp_path, function, code, message
):
    with pytest.raises(EvaluationError, match=message):
        questions(tmp_path, function, code)


def test_a_missing_file_and_a_name_alone_are_refused(tmp_path):
    questions(tmp_path)
    (tmp_path / "checks.py").rename(tmp_path / "other.py")
    with pytest.raises(EvaluationError, match=r"checks.py: no such file; expected Python with"):
        load_questions([tmp_path / "task.yaml"])
    (tmp_path / "task.yaml").write_text("name: t\nrows: rows.jsonl\nverifier: python\n")
    with pytest.raises(
        ConfigError, match=r"expected .kind: python, file: \.\.\., function: \.\.\."
    ):
        read_task(tmp_path / "task.yaml")
