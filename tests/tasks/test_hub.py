"""Rows of published data sets, in their published form, from files."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import EvaluationError
from dualign.evaluation.evaluate import task_source
from dualign.tasks import hub
from dualign.tasks.base import Problem, Task, judge
from dualign.tasks.table import load_questions
from dualign.verifiers.sandbox import obstacle

GPQA = {
    "Question": " Which is a noble gas? ",
    "Correct Answer": "neon ",
    "Incorrect Answer 1": "iron",
    "Incorrect Answer 2": "zinc",
    "Incorrect Answer 3": "lead",
}
MMLU = {
    "sample_id": "anatomy/test/0",
    "question": "Welches Organ pumpt Blut?",
    **{
        f"option_{letter}": text
        for letter, text in zip("abcd", ("Herz", "Leber", "Niere", "Milz"), strict=True)
    },
    "answer": "A",
}


def asked(name: str, tmp_path: Path, rows: list[Any]) -> tuple[Task, tuple[Problem, ...]]:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    ((task, problems),) = load_questions([f"hub:{name}@{file}"])
    return task, problems


def test_aime_is_asked_for_a_box_and_judged_by_value(tmp_path: Path) -> None:
    task, (problem,) = asked("aime25", tmp_path, [{"problem": "Find $n$.", "answer": 70}])
    assert str(problem.question).endswith("Think step by step before answering.\n\nFind $n$.")
    assert r"final answer is: $\boxed{ANSWER}$." in str(problem.question)
    assert judge(task, problem, r"The final answer is: $\boxed{70}$. I hope it is correct")
    assert not judge(task, problem, r"$\boxed{71}$")
    assert task.without_instruction().load_problems()[0].question == "Find $n$."
    assert task_source(task, 1)["dataset"]["path"] == "yentinglin/aime_2025"


def test_problems_of_gsm_plus_without_an_answer_are_counted(tmp_path: Path) -> None:
    row = {"question": "2+3?", "answer": "5", "perturbation_type": "digit expansion"}
    task, problems = asked(
        "gsm_plus", tmp_path, [row, {**row, "perturbation_type": "critical thinking"}]
    )
    assert len(problems) == 1 and dict(task.left_out) == {"critical thinking": 1}  # type: ignore[attr-defined]


def test_the_right_choice_of_gpqa_stands_at_the_same_place_each_time(tmp_path: Path) -> None:
    rows = [{**GPQA, "Question": f"Question {number}"} for number in range(24)]
    task, problems = asked("gpqa_diamond", tmp_path, rows)
    letters = [problem.expected for problem in problems]
    assert set(letters) == set("ABCD")
    again = asked("gpqa_diamond", tmp_path, rows[12:])[1]
    assert [problem.expected for problem in again] == letters[12:]
    for problem in problems:
        assert f"\n{problem.expected}) neon" in str(problem.question)
        assert judge(task, problem, f"So neon.\n\nAnswer: {problem.expected}")


def test_ifeval_is_judged_by_its_instructions(tmp_path: Path) -> None:
    row = {
        "key": 1000,
        "prompt": "Say hello. Use no commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None}],
    }
    task, (problem,) = asked("ifeval", tmp_path, [row])
    assert (problem.id, problem.question) == ("1000", row["prompt"])
    assert judge(task, problem, "Hello") and not judge(task, problem, "Hello, you")


def test_global_mmlu_is_asked_in_its_language(tmp_path: Path) -> None:
    task, (problem,) = asked("global_mmlu_de", tmp_path, [MMLU, {**MMLU, "option_b": None}])
    assert (
        "\n\n###\nFrage:\nWelches Organ pumpt Blut?\n###\nAntwortmöglichkeiten:\nA) Herz\nB) "
        in (str(problem.question))
    )
    assert problem.extra == {"language": "de"} and problem.id == "anatomy/test/0"
    assert judge(task, problem, "Es ist das Herz.\nAntwort: A")
    assert dict(task.left_out) == {"a choice is empty": 1}  # type: ignore[attr-defined]


def packed(cases: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def programs(**fields: Any) -> dict[str, Any]:
    case = {"input": "2 3\n", "output": "5\n", "testtype": "stdin"}
    return {
        "question_id": "abc300_a",
        "question_content": "Add two numbers.",
        "starter_code": "",
        "public_test_cases": json.dumps([case]),
        "private_test_cases": packed([{**case, "input": "4 5\n", "output": "9\n"}]),
        "metadata": "{}",
        **fields,
    }


needs_sandbox = pytest.mark.skipif(obstacle(isolated=True) != "", reason="no namespaces here")


@needs_sandbox
def test_a_program_has_to_pass_public_and_private_cases(tmp_path: Path) -> None:
    task, (problem,) = asked("livecodebench", tmp_path, [programs()])
    assert "Read the inputs from stdin" in str(problem.question) and problem.id == "abc300_a"
    assert str(problem.expected).startswith("2 tests, "), "megabytes of cases stay out of samples"
    right = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    assert judge(task, problem, right)
    assert judge(task, problem, "```python\nprint(5)\n```").reason == "wrong output"
    assert judge(task, problem, "print(5)").reason == "no code"


@needs_sandbox
def test_a_function_with_starter_code_is_called(tmp_path: Path) -> None:
    cases = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]
    row = programs(
        starter_code="class Solution:\n    def add(self, xs: List[int], y: int) -> List[int]:",
        public_test_cases=json.dumps(cases),
        private_test_cases=packed(cases),
        metadata='{"func_name": "add"}',
    )
    task, (problem,) = asked("livecodebench", tmp_path, [row])
    assert "following starter code" in str(problem.question)
    code = "```python\nclass Solution:\n    def add(self, xs: List[int], y: int):\n        return {}\n```"
    assert judge(task, problem, code.format("[x + y for x in xs]"))
    assert judge(task, problem, code.format("xs")).reason == "a test fails"


class Trap:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('ran')",)


def test_a_pickle_of_more_than_text_is_refused_and_never_run(tmp_path: Path) -> None:
    trap = base64.b64encode(zlib.compress(pickle.dumps(Trap()))).decode()
    with pytest.raises(EvaluationError, match=r"row 1: isn't a row .*exec is no text"):
        asked("livecodebench", tmp_path, [programs(private_test_cases=trap)])


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "aime25",
            [{"question": "?"}],
            r"row 1: isn't a row of this data set \(KeyError: 'problem'\)",
        ),
        ("aime25", [], "no rows"),
        ("gpqa_diamond", [[1]], "isn't a row"),
        (
            "ifeval",
            [{"key": 1, "prompt": "x", "instruction_id_list": ["no"], "kwargs": [{}]}],
            "unknown",
        ),
    ],
)
def test_rows_of_another_form_are_named(
    tmp_path: Path, name: str, rows: list[Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        asked(name, tmp_path, rows)


def test_parquet_is_read_as_json_lines_are(tmp_path: Path) -> None:
    from pyarrow import table
    from pyarrow.parquet import write_table

    write_table(table({"problem": ["1+1?"], "answer": ["2"]}), tmp_path / "a.parquet")
    ((task, (problem,)),) = load_questions([f"hub:aime25@{tmp_path / 'a.parquet'}"])
    assert problem.expected == "2" and task.name == "aime25"
    (tmp_path / "b.parquet").write_text("no")
    for file, message in (("b.parquet", "isn't Parquet"), ("c.jsonl", "no such file")):
        with pytest.raises(EvaluationError, match=message):
            hub.load(f"aime25@{tmp_path / file}")


def test_without_network_the_data_set_and_the_way_out_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match=r"Idavidrein/gpqa.*HF_HOME.*hub:gpqa_diamond@FILE"):
        hub.load("gpqa_diamond")
    with pytest.raises(EvaluationError, match=r"did you mean 'gsm_plus'"):
        hub.load("gsm-plus")
    assert ("ifeval", "task") in list(hub.names())
