"""Arithmetic in words: the same problems in six languages."""

import re

import pytest

from dualign.errors import EvaluationError
from dualign.tasks import word_problems
from dualign.tasks.base import judge
from dualign.tasks.table import load_questions

LANGUAGES = ["en", "fr", "es", "de", "it", "pt"]


def test_the_problems_are_the_same_in_every_language() -> None:
    questions = load_questions(["words:all"])
    assert [task.name for task, _ in questions] == [f"words_{code}" for code in LANGUAGES]
    numbers = [
        [sorted(re.findall(r"\d+", problem.question)) for problem in problems]
        for _, problems in questions
    ]
    results = [[problem.expected for problem in problems] for _, problems in questions]
    assert all(row == numbers[0] for row in numbers) and all(row == results[0] for row in results)
    texts = {problem.question for _, problems in questions for problem in problems}
    assert len(texts) == 6 * len(results[0]), "no question twice"
    assert not re.search(r"[{}]", "".join(texts))
    assert len({task.digest for task, _ in questions}) == 6


def test_two_results_by_hand() -> None:
    ((task, problems),) = load_questions(["words:en"])
    first, third = problems[0], problems[2]
    assert first.question.startswith(
        "Clara has 10 apples and buys 8 more. Then Clara gives 2 apples"
    )
    assert first.expected == "16"  # 10 + 8 - 2
    assert third.question.startswith("On each of 4 days, Paul reads 10 pages in the morning and 7")
    assert third.expected == "68"  # (10 + 7) * 4
    assert judge(task, first, "10 + 8 - 2 = 16") and not judge(task, first, "It is 20.")
    assert {problem.extra["language"] for problem in problems} == {"en"}


def test_a_language_without_problems_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"words:fx: .*expected one of en, fr"):
        word_problems.load("fx")
    assert list(word_problems.names()) == [*((c, "task") for c in LANGUAGES), ("all", "group")]
