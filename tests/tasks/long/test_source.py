"""References of long-context tasks, and problems as long as they say."""

import pytest

from dualign.errors import EvaluationError
from dualign.tasks.base import judge
from dualign.tasks.long.draft import Draft
from dualign.tasks.long.fit import fitted
from dualign.tasks.long.source import load, names, read_name, reference
from dualign.tasks.table import listing, load_questions, load_tasks


def words(text: str) -> int:
    return len(text.split())


def test_a_reference_names_forms_lengths_languages_problems_and_seed():
    tasks = load_tasks(["long:needle,tracking@4k,500/fr,de*50~7"])
    assert [task.name for task in tasks][:3] == [
        "long:needle@4k/fr~7",
        "long:needle@500/fr~7",
        "long:needle@4k/de~7",
    ]
    assert {(task.length, task.count, task.seed) for task in tasks} == {(4096, 50, 7), (500, 50, 7)}
    assert len(load("all@8k")) == 13
    assert len(load("needle,needle@4k,4096/en,en")) == 1
    assert reference(["4k", "8k"], languages=["en", "fr"], problems=5) == "long:all@4k,8k/en,fr*5"
    assert read_name("long:needle@4k/fr").length == 4096
    assert read_name("sums") is None and read_name("lm_eval:ruler@x") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needle", "expected long:FORMS@LENGTHS, such as long:needle@4k"),
        ("needle", "between brackets, a reference with commas needs quotes"),
        ("nedle@4k", r"unknown form 'nedle' \(did you mean 'needle'\?\)"),
        ("needle@4q", "expected a length in tokens, such as 4k or 500, found '4q'"),
        ("needle@128", "128 tokens leave no room besides the 128 of an answer"),
        ("needle@4k/frr", r"unknown language 'frr' \(did you mean 'fr'\?\)"),
        ("needle@4k*0", "expected 1 problem or more, found 0"),
    ],
)
def test_a_wrong_reference_is_refused(name, message):
    with pytest.raises(EvaluationError, match=message):
        load(name)


@pytest.mark.parametrize("length", [1024, 8192])
def test_every_form_fills_its_length(length):
    for task in load(f"all@{length}*1"):
        (problem,) = task.load_problems()
        asked = problem.sizing.sized(words)
        assert asked.sizing is None
        assert 0.97 * (length - 128) <= words(asked.question) <= length - 128
        assert asked.extra["prompt_tokens"] == words(asked.question)
        assert judge(task, asked, asked.question).score == 1


def test_an_answer_is_worth_the_share_of_texts_that_it_has():
    (task,) = load("multi_value@1k*1")
    (problem,) = task.load_problems()
    verdict = judge(task, problem, f"They are {problem.expected[1]} and {problem.expected[3]}.")
    assert (verdict.right, verdict.score) == (False, 0.5)


def test_problems_can_be_read_without_a_tokenizer_and_a_part_of_them_drawn():
    ((task, problems),) = load_questions(["long:needle@32k*40"], limit=5, seed=1)
    assert len(problems) == 5
    assert all(problem.sizing.tokens == 32768 - 128 for problem in problems)
    assert task.digest != load("needle@16k*40")[0].digest


def line(size: int) -> str:
    return "a b " * size


def test_a_length_that_a_form_cant_have_is_refused():
    draft = Draft(expected=("a",), text=line, smallest=4, largest=50)
    with pytest.raises(EvaluationError, match="its shortest problem has 8 tokens, and 7 are left"):
        fitted(draft, words, 7, "long:x")
    assert fitted(draft, words, 8, "long:x") == (line(4), 8)
    with pytest.raises(EvaluationError, match="longest problem has 100 tokens, and 200 were asked"):
        fitted(draft, words, 200, "long:x")
    assert fitted(draft, words, 102, "long:x")[1] == 100


def test_few_sizes_are_tried():
    tried = []

    def count(text: str) -> int:
        tried.append(text)
        return 60 + words(text)

    assert fitted(Draft(expected=("a",), text=line, smallest=1), count, 10_000, "x")[1] >= 9850
    assert len(tried) <= 5


def test_the_list_of_tasks_has_every_form():
    assert "long:tracking@4k  task" in list(listing("long:tracking@*"))
    assert "long:all@4k  group" in list(listing("long:"))
    assert all(load(name) for name, _ in names())
