"""Rows of the Berkeley leaderboard's published form, versions 3 and 4."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import EvaluationError
from dualign.tasks import bfcl
from dualign.tasks.base import judge
from dualign.tasks.table import load_questions

AREA = {
    "name": "shapes.area",
    "description": "Area of a rectangle.",
    "parameters": {
        "type": "dict",
        "properties": {
            "sides": {"type": "tuple", "items": {"type": "float"}, "description": "Both."},
            "unit": {"type": "string", "enum": ["dict"], "description": "Of length."},
        },
        "required": ["sides"],
    },
}
TRUTH = [{"shapes.area": {"sides": [[2.0, 3.0]], "unit": ["cm", ""]}}]
CALL = '<tool_call>{"name": "shapes_area", "arguments": {"sides": [2.0, 3.0]}}</tool_call>'


def row(name: str, **fields: Any) -> dict[str, Any]:
    turns = [[{"role": "user", "content": "How large is 2 by 3 cm?"}]]
    return {"id": name, "question": turns, "function": [AREA], **fields}


def write(folder: Path, file: str, rows: list[Any], answers: list[Any] | None = None) -> None:
    (folder / "possible_answer").mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("\n".join(map(json.dumps, rows)) + "\n")
    if answers is not None:
        (folder / "possible_answer" / file).write_text("\n".join(map(json.dumps, answers)))


@pytest.mark.parametrize("file", ["BFCL_v3_simple.json", "BFCL_v4_simple_python.json"])
def test_a_row_is_asked_with_its_functions_and_judged_by_its_answer(
    tmp_path: Path, file: str
) -> None:
    write(tmp_path, file, [row("s_0")], [{"id": "s_0", "ground_truth": TRUTH}])
    ((task, (problem,)),) = load_questions([f"bfcl:simple@{tmp_path}"])
    assert (task.name, problem.question) == ("bfcl_simple", "How large is 2 by 3 cm?")
    (tool,) = problem.tools
    assert tool["function"]["name"] == "shapes_area", "as models of functions get it"
    parameters = tool["function"]["parameters"]
    assert parameters["type"] == "object" and parameters["properties"]["sides"] == {
        "type": "array",
        "items": {"type": "number"},
        "description": "Both.",
    }
    assert parameters["properties"]["unit"]["enum"] == ["dict"]
    assert "Area of a rectangle" not in json.dumps(problem.expected), (
        "what nothing is compared with"
    )
    assert judge(task, problem, CALL)
    assert judge(task, problem, CALL.replace("2.0", "4.0")).reason == "another value"
    assert judge(task, problem, CALL.replace("shapes_area", "shapes.area")).reason == (
        "another function"
    )


def test_categories_without_possible_answers(tmp_path: Path) -> None:
    write(tmp_path, "BFCL_v4_irrelevance.json", [row("i_0", function=[]), row("i_1")])
    write(tmp_path, "BFCL_v4_live_relevance.json", [row("r_0")])
    references = [f"bfcl:{name}@{tmp_path}" for name in ("irrelevance", "live_relevance")]
    (none, (_, first)), (some, (second,)) = load_questions(references)
    assert [judge(none, first, text).right for text in (CALL, "None fits.")] == [False, True]
    assert [judge(some, second, text).right for text in (CALL, "None fits.")] == [True, False]


def test_a_group_has_a_task_for_each_category(tmp_path: Path) -> None:
    for name in ("simple_python", "multiple", "parallel", "parallel_multiple"):
        answers = [{"id": name, "ground_truth": TRUTH}]
        write(tmp_path, f"BFCL_v4_{name}.json", [row(name)], answers)
    write(tmp_path, "BFCL_v4_irrelevance.json", [row("i_0")])
    tasks = [task for task, _ in load_questions([f"bfcl:non_live@{tmp_path}"])]
    assert [task.name for task in tasks] == [
        "bfcl_simple",
        "bfcl_multiple",
        "bfcl_parallel",
        "bfcl_parallel_multiple",
        "bfcl_irrelevance",
    ]
    assert len({task.digest for task in tasks}) == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simpel", r"no category of BFCL \(did you mean 'simple'\?\)"),
        ("simple_java", "calls in Java, which isn't asked"),
        ("multi_turn_base", "several turns"),
        ("multiple", r"no file BFCL_v4_multiple.json there"),
    ],
)
def test_what_cannot_be_asked_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_questions([f"bfcl:{name}@{tmp_path}"])


@pytest.mark.parametrize(
    ("rows", "answers", "message"),
    [
        ([{"id": "a"}], [], "expected a question of one turn"),
        ([row("a", question=[[], []])], [], "expected a question of one turn"),
        ([row("a", function=[{"name": "f"}])], [], "without name or parameters"),
        ([row("a")], [], "no ground_truth"),
        ([{"question": []}], [], "no 'id'"),
        ([[1]], [], "expected an object"),
        ([row("a"), row("a")], [{"id": "a", "ground_truth": TRUTH}], "given twice"),
        ([row("a")], [{"id": "a", "ground_truth": [{"other": {}}]}], "'other', which is none"),
        ([], [], "holds no rows"),
    ],
)
def test_a_row_of_another_form_is_named(
    tmp_path: Path, rows: list[Any], answers: list[Any], message: str
) -> None:
    write(tmp_path, "BFCL_v4_simple_python.json", rows, answers)
    with pytest.raises(EvaluationError, match=message):
        load_questions([f"bfcl:simple@{tmp_path}"])


def test_without_network_the_message_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match=r"Tried: .*Leaderboard.* bfcl:simple@FOLDER"):
        bfcl.load("simple")


def test_all_that_can_be_asked_is_listed() -> None:
    listed = list(bfcl.names())
    assert ("parallel_multiple", "task") in listed and ("non_live", "group") in listed
