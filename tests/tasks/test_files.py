"""Task files: what they become, and what is refused with which words."""

import json
from pathlib import Path

import pytest

from dualign.errors import ConfigError, EvaluationError
from dualign.tasks.base import judge
from dualign.tasks.files import read_task
from dualign.tasks.table import load_problems, load_questions, load_tasks


def write(folder, text, rows=({"id": "a", "question": "1+1?", "answer": 2},), name="t.yaml"):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


GOOD = "name: t\nrows: rows.jsonl\nverifier: integer\n"


def test_a_row_becomes_a_question_with_its_instruction(tmp_path):
    file = write(tmp_path, GOOD + "prompt: 'Q: {question}'\ninstruction: A number only.\n")
    (problem,) = load_problems(read_task(file))
    assert problem.messages == ({"role": "user", "content": "Q: 1+1?\n\nA number only."},)
    assert problem.question == "Q: 1+1?\n\nA number only."
    assert (problem.id, problem.expected, problem.extra) == ("a", "2", {"question": "1+1?"})


def test_messages_of_a_row_are_taken_as_they_are(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    file = write(tmp_path, GOOD, rows=[{"messages": turns, "answer": "1"}])
    (problem,) = load_problems(read_task(file))
    assert list(problem.messages) == turns
    assert (problem.id, problem.question) == ("1", turns)


def test_a_sample_of_rows_is_seeded_and_keeps_their_order(tmp_path):
    rows = [{"id": i, "prompt": str(i), "answer": i} for i in range(50)]
    task = read_task(write(tmp_path, GOOD, rows=rows))
    first = [int(p.id) for p in load_problems(task, limit=10, seed=1)]
    assert first == [int(p.id) for p in load_problems(task, limit=10, seed=1)]
    assert first != [int(p.id) for p in load_problems(task, limit=10, seed=2)]
    assert first == sorted(first)
    assert len(load_problems(task, limit=50)) == len(load_problems(task, limit=99)) == 50


def test_an_unknown_key_is_told_with_its_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"t\.yaml:4: verifer: .*did you mean 'verifier'"):
        read_task(write(tmp_path, GOOD + "verifer: exact\n"))


def test_an_unknown_verifier_is_told_with_its_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'integer'"):
        read_task(write(tmp_path, GOOD.replace("integer", "integr")))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"nope\.yaml: no such task file"):
        read_task(tmp_path / "nope.yaml")
    file = write(tmp_path, GOOD.replace("rows.jsonl", "other.jsonl"))
    with pytest.raises(EvaluationError, match=r"other\.jsonl: no such file"):
        load_problems(read_task(file))


def test_two_tasks_of_one_name_are_refused(tmp_path):
    files = [write(tmp_path, GOOD, name=name) for name in ("a.yaml", "b.yaml")]
    with pytest.raises(EvaluationError, match="are both named 't'"):
        load_tasks(files)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no rows"),
        ([{"prompt": "a"}], "rows.jsonl:1: no 'answer'"),
        (
            [{"question": "a", "answer": 1}],
            "neither 'messages' nor 'prompt' .found answer, question",
        ),
        ([{"messages": "hi", "answer": 1}], "list of role and content"),
        (
            [{"messages": [{"role": "assistant", "content": "x"}], "answer": 1}],
            "ends with the assistant",
        ),
        ([{"id": 1, "prompt": "a", "answer": 1}] * 2, "id '1' is given twice"),
        (["text"], "rows.jsonl:1: expected an object"),
    ],
)
def test_a_row_that_cant_be_asked_is_refused(tmp_path, rows, message):
    with pytest.raises(EvaluationError, match=message):
        load_problems(read_task(write(tmp_path, GOOD, rows=rows)))


def test_rows_that_are_not_utf_8_are_named_by_line(tmp_path):
    task = read_task(write(tmp_path, GOOD + "prompt: '{question}'\n"))
    content = b'\xef\xbb\xbf{"question": "caf\xc3\xa9", "answer": 1}\n'
    Path(task.rows).write_bytes(content)
    assert [problem.expected for problem in load_problems(task)] == ["1"]
    Path(task.rows).write_bytes(content + '{"question": "caf\xe9", "answer": 1}'.encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"rows\.jsonl:2: isn't UTF-8"):
        load_problems(task)


def test_a_field_that_the_row_lacks_is_named(tmp_path):
    file = write(tmp_path, GOOD + "prompt: '{problem}'\n")
    with pytest.raises(
        EvaluationError, match="asks for 'problem'; the row has answer, id, question"
    ):
        load_problems(read_task(file))


def test_a_prompt_with_a_lone_brace_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="for braces that are text"):
        read_task(write(tmp_path, GOOD + "prompt: '{question'\n"))


def test_a_prompt_may_be_messages_and_the_answer_under_another_name(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    rows = [{"prompt": turns, "reward_model": {"ground_truth": 2, "style": "rule"}}]
    file = write(tmp_path, GOOD + "answer: '{reward_model[ground_truth]}'\n", rows=rows)
    (problem,) = load_problems(read_task(file))
    assert (list(problem.messages), problem.expected) == (turns, "2")


@pytest.mark.parametrize(
    ("keys", "row", "message"),
    [
        ("prompt: '{prompt}'", {"prompt": [{"role": "user", "content": "a"}]}, "expected text"),
        ("prompt: '{x}'", {"x": None}, "asks for 'x', which is None"),
        ("prompt: '{x[y]}'", {"x": "a"}, "the prompt .* asks for"),
        ("answer: '{y}'", {"prompt": "a", "y": ["1"]}, "the answer '{y}' asks for 'y'"),
        ("answer: '{z}'", {"prompt": "a"}, "the answer '{z}' asks for 'z'; the row has answer"),
        (
            "",
            {"prompt": [{"role": "assistant", "content": "a"}]},
            "'prompt' ends with the assistant",
        ),
        ("", {"prompt": ["a"]}, "'prompt' has to be a list of role and content"),
        ("", {"prompt": []}, "neither 'messages' nor 'prompt'"),
    ],
)
def test_what_is_no_text_is_never_asked_as_its_repr(tmp_path, keys, row, message):
    file = write(tmp_path, f"{GOOD}{keys}\n", rows=[{"answer": "1"} | row])
    with pytest.raises(EvaluationError, match=message):
        load_problems(read_task(file))


def with_verifier(folder, verifier, **row):
    row = {"question": "a", **row}
    return write(folder, f"name: t\nrows: rows.jsonl\nprompt: '{{question}}'\n{verifier}\n", [row])


@pytest.mark.parametrize(
    ("verifier", "message"),
    [
        ("{kind: contains, ned: any}", r"verifier.ned: unknown key .did you mean 'need'"),
        ("{kind: contains, need: some}", "verifier.need: expected one of all, any, found 'some'"),
        ("{kind: contians}", "verifier.kind: .*did you mean 'contains'"),
        ("{need: any}", "verifier: needs the key 'kind' .one of exact, integer"),
        ("{kind: exact, need: any}", "verifier.need: unknown key"),
        ("{kind: regex, pattern: '('}", r"verifier.pattern: '\(' isn't a regular expression"),
        ("{kind: [exact]}", "verifier.kind: expected one of exact, .*, found a list"),
        ("3", "verifier: expected one of exact, .*, python or keys with values, found 3"),
        ("[exact]", "verifier: expected"),
    ],
)
def test_a_verifiers_settings_are_checked(tmp_path, verifier, message):
    with pytest.raises(ConfigError, match=message):
        read_task(with_verifier(tmp_path, f"verifier: {verifier}"))


def test_a_verifier_without_settings_is_its_name(tmp_path):
    plain, keys = (
        read_task(with_verifier(tmp_path, f"verifier: {text}"))
        for text in ("contains", "{kind: contains}")
    )
    assert plain.verifier == "contains"
    assert plain.check == keys.check


def test_a_row_may_expect_a_list_if_the_verifier_takes_it(tmp_path):
    file = with_verifier(tmp_path, "verifier: contains\nanswer: '{texts}'", texts=["x", "y"])
    ((_, (problem,)),) = load_questions([file])
    assert problem.expected == ["x", "y"]
    file = with_verifier(tmp_path, "verifier: exact\nanswer: '{texts}'", texts=["x"])
    with pytest.raises(EvaluationError, match=r"asks for 'texts', which is .'x'.: expected text"):
        load_problems(read_task(file))


@pytest.mark.parametrize(
    ("verifier", "answer", "message"),
    [
        ("integer", "seven", "'seven' isn't a whole number"),
        ("exact", ["seven"], "the verifier exact takes text or a number"),
        ("regex", "(", r"'\(' isn't a regular expression"),
        ("contains", {"a": 1}, "takes text, or a list of texts"),
    ],
)
def test_an_answer_that_its_verifier_cant_read_is_refused_with_its_row(
    tmp_path, verifier, answer, message
):
    file = with_verifier(tmp_path, f"verifier: {verifier}", answer=answer)
    with pytest.raises(EvaluationError, match=rf"rows\.jsonl:1: expected answer .*{message}"):
        load_questions([file])
    assert len(load_questions([file], checked=False)) == 1


def test_a_schema_of_the_task_is_a_file_next_to_it(tmp_path):
    pytest.importorskip("jsonschema")
    file = with_verifier(tmp_path, "verifier: {kind: json_schema, schema: s.json}")
    with pytest.raises(EvaluationError, match=r"s\.json: no such file; expected a JSON Schema"):
        load_questions([file])
    (tmp_path / "s.json").write_text('{"type": "integer"}')
    ((task, (problem,)),) = load_questions([file])
    assert problem.expected is None
    assert judge(task, problem, "3")
    assert judge(task, problem, "x").reason == "not JSON"
    (tmp_path / "s.json").write_text('{"type": "whole"}')
    with pytest.raises(EvaluationError, match=r"task t: .*s\.json: not a JSON Schema"):
        load_questions([file])


def test_an_unknown_source_is_told_with_its_nearest():
    with pytest.raises(EvaluationError, match=r"lmeval:gsm8k: .*did you mean 'lm_eval'"):
        load_tasks(["lmeval:gsm8k"])
