"""Whether traces and answers are in the language of the question."""

import json
from pathlib import Path

import pytest

from dualign.evaluation.config import EvalStage
from dualign.evaluation.evaluate import run
from dualign.evaluation.language_table import language_share
from dualign.evaluation.languages import count_languages, language_of, with_languages
from dualign.tasks.table import load_questions

TEXTS = [
    ("Tom has three apples and buys four more, so he has seven apples.", "en"),
    ("Tom a trois pommes et en achète quatre de plus, donc il en a sept.", "fr"),
    ("Tom hat drei Äpfel und kauft vier dazu, also hat er sieben Äpfel.", "de"),
    ("Tom tiene tres manzanas y compra cuatro más, así que tiene siete.", "es"),
    ("Tom ha tre mele e ne compra altre quattro, quindi ne ha sette.", "it"),
    ("O Tom tem três maçãs e compra mais quatro, por isso tem sete.", "pt"),
    ("答案是七个苹果,因为三加四等于七。", "zh"),
    ("Ответ семь, потому что три плюс четыре будет семь, и это всё.", "ru"),
    (r"Il y a $3 + 4 = 7$ pommes dans le panier, donc la réponse est \boxed{7}.", "fr"),
    ("7 apples", "unknown"),
    ("La réponse est 7.", "unknown"),
    ("42", None),
    (r"\boxed{\frac{1}{2}} $x + 1$", None),
    ("```python\nprint('the answer is as you see')\n```", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "language"), TEXTS)
def test_the_language_of_words_is_told_and_few_words_are_unknown(
    text: str, language: str | None
) -> None:
    assert language_of(text) == language
    assert language_of(text) == language, "the same each time"


def test_a_long_text_is_told_by_its_head_its_middle_and_its_end() -> None:
    english, french = (f"{TEXTS[number][0]} " * 400 for number in (0, 1))
    assert language_of(english + french[:1500]) == "en"
    assert language_of(english[:1500] + french) == "fr", "what comes later counts, too"


def line(language: str | None, trace: str, answer: str) -> dict[str, object]:
    named = {} if language is None else {"language": language}
    return {**named, "thinking": trace, "answer": answer}


def test_traces_and_answers_are_counted_by_the_questions_language() -> None:
    english, french = TEXTS[0][0], TEXTS[1][0]
    samples = with_languages(
        [line("fr", english, french), line("fr", english, "7"), line("fr", french, "sept")]
    )
    assert [sample.get("answer_language") for sample in samples] == ["fr", None, "unknown"]
    assert count_languages(samples) == {
        "trace": {"same": 1, "other": 2, "unknown": 0},
        "answer": {"same": 1, "other": 0, "unknown": 1},
    }
    assert language_share({"same": 1, "other": 2, "unknown": 0}) == "33.3"
    assert language_share({"same": 1, "other": 0, "unknown": 1}) == "100.0 (+1)"
    assert language_share({"same": 0, "other": 0, "unknown": 1}) == "- (+1)"


@pytest.mark.parametrize("language", [None, "python", "xx", "French"])
def test_rows_without_a_code_are_left_as_they_are(language: str | None) -> None:
    samples = [line(language, TEXTS[0][0], "7")]
    assert with_languages(samples) == tuple(samples)
    assert count_languages(samples) == {}


def test_an_evaluation_says_which_languages_were_written(learnt: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "What is 1+2?", "answer": "3"},
        {"question": "What is 2+2?", "answer": "4"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        "name: sums\nrows: rows.jsonl\nverifier: integer\nprompt: '{question}'\nlanguage: fr\n"
    )
    stage = EvalStage(
        name="eval", models=(str(learnt),), tasks=(str(tmp_path / "task.yaml"),), max_new_tokens=24
    )
    outcome = run(stage, tmp_path / "work", seed=0)
    lines = [json.loads(x) for x in (tmp_path / "work" / "samples.jsonl").read_text().splitlines()]
    assert {sample["language"] for sample in lines} == {"fr"}
    counts = outcome.metrics["tasks"]["sums"]["think"]["languages"]
    assert counts["trace"]["same"] == 0 and sum(counts["trace"].values()) == 2
    assert "## Languages" in (tmp_path / "work" / "table.md").read_text()


def test_the_key_of_a_task_leaves_hashes_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1+2?", "answer": "3"}')
    text = "name: sums\nrows: rows.jsonl\nverifier: integer\nprompt: '{question}'\n"
    settings = []
    for more in ("", "language: fr\n"):
        (tmp_path / "task.yaml").write_text(text + more)
        ((task, _),) = load_questions([tmp_path / "task.yaml"])
        settings.append(task.settings())
    assert settings[1] == {**settings[0], "language": "fr"} and "language" not in settings[0]
