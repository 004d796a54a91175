"""Answers that follow instructions and answers that don't, for each check of IFEval."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dualign.errors import DataError, EvaluationError
from dualign.tasks.files import read_task
from dualign.tasks.table import load_problems
from dualign.verifiers.instruction_checks import CHECKS, count_sentences
from dualign.verifiers.instructions import InstructionsVerifier
from dualign.verifiers.table import verify

MORE, LESS = "at least", "less than"
CASES: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "keywords:existence": [
        ({"keywords": ["cat", "Dog"]}, "The dogs chase a Cat.", "A cat."),
        ({"keywords": ["c++"]}, "I write C++.", "I write C."),
    ],
    "keywords:frequency": [
        ({"keyword": "a b", "frequency": 2, "relation": MORE}, "A b, a b", "a b"),
        ({"keyword": "x", "frequency": 2, "relation": LESS}, "one X", "x and x"),
    ],
    "keywords:forbidden_words": [
        ({"forbidden_words": ["cat", "so so"]}, "A category, so it is", "The CAT."),
        ({"forbidden_words": ["c++"]}, "c or c+", "c++, c"),
    ],
    "keywords:letter_frequency": [
        ({"letter": "q", "let_frequency": 2, "let_relation": MORE}, "Quick q", "quick"),
        ({"letter": "!", "let_frequency": 2, "let_relation": LESS}, "Hey!", "Hey!!"),
    ],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": MORE}, "Dr. Li came. She left", "Dr. Li has 1.5 l."),
        ({"num_sentences": 3, "relation": LESS}, "1. Yes.\n2. No.", "A! B? C."),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
        ({"num_paragraphs": 2}, "***\none\n***\ntwo\n***", "one\n***\n***\ntwo"),
    ],
    "length_constraints:number_words": [
        ({"num_words": 3, "relation": MORE}, "one two, three", "one two -"),
        ({"num_words": 3, "relation": LESS}, "one -- two", "one two three"),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
            'Hello.\n\n"Weekend, at last."',
            "Hello.\n\nA weekend.",
        ),
        (
            {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "one"},
            "One line\nand one more",
            "One\n\ntwo",
        ),
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, "Dear [name], at [place] or [home]", "Dear [name]"),
    ],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, "Bye\np. s. more", "Bye\nPS more"),
        ({"postscript_marker": "P.P.S"}, "Bye. P.P.S more", "Bye. P.S. more"),
        ({"postscript_marker": "Note:"}, "Bye. NOTE: more", "Bye. Keynote: more"),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 2}, "So:\n* one\n  - two", "* one\n* two\n* three"),
        ({"num_bullets": 1}, "**Bold** text\n* one", "**Bold** text"),
    ],
    "detectable_format:constrained_response": [
        ({}, "Hm. My answer is maybe.", "My answer is perhaps."),
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, "*one* and **two**", "**one** and two"),
        ({"num_highlights": 1}, "a *part of it*", "* one\n* two, ** **"),
    ],
    "detectable_format:multiple_sections": [
        (
            {"section_spliter": "SECTION", "num_sections": 2},
            "SECTION 1\na\nSECTION 2\nb",
            "SECTION 1\na\nSection 2\nb",
        ),
    ],
    "detectable_format:json_format": [
        ({}, '```json\n{"a": [1]}\n```', 'Here: {"a": 1}'),
        ({}, '{"a": 1}', "{'a': 1}"),
    ],
    "detectable_format:title": [
        ({}, "<<poem of joy>>\nText", "<< >>\nText"),
        ({}, "Text <<a>>", "<<a\nb>>"),
    ],
    "combination:two_responses": [
        ({}, "one\n******\ntwo", "one\n******\none"),
        ({}, "******\none\n******\ntwo", "one\n***\ntwo"),
    ],
    "combination:repeat_prompt": [
        ({"prompt_to_repeat": "Say it."}, "say it. Done.", "I say it. Done."),
    ],
    "startend:end_checker": [
        ({"end_phrase": "Any questions?"}, 'So. "any questions?"', "Any questions? No."),
    ],
    "startend:quotation": [
        ({}, ' "All of it." ', '"All" of it.'),
        ({}, '""', '"'),
    ],
    "change_case:capital_word_frequency": [
        (
            {"capital_frequency": 2, "capital_relation": MORE},
            "THE well-known U.S.A. is here",
            "NO Way here",
        ),
        ({"capital_frequency": 2, "capital_relation": LESS}, "A day", "A DAY"),
    ],
    "punctuation:no_comma": [({}, "one; two", "one, two")],
}
IN_LANGUAGES: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "language:response_language": [
        (
            {"language": "de"},
            "Das ist ein ganz gewöhnlicher Satz über das Wetter in Berlin.",
            "This is quite an ordinary sentence about the weather in Berlin.",
        ),
    ],
    "change_case:english_capital": [
        (
            {},
            "THIS IS AN ORDINARY SENTENCE ABOUT THE WEATHER TODAY.",
            "This is an ordinary sentence about the WEATHER today.",
        ),
    ],
    "change_case:english_lowercase": [
        (
            {},
            "this is an ordinary sentence about the weather today.",
            "this is an ordinary sentence about the weather Today.",
        ),
    ],
}


@pytest.mark.parametrize("id", CASES)
def test_each_check_knows_what_follows_and_what_does_not(id: str) -> None:
    for kwargs, follows, fails in CASES[id]:
        expected = [{"id": id, "kwargs": kwargs}]
        assert verify("instructions", follows, expected), (kwargs, follows)
        verdict = verify("instructions", fails, expected)
        assert not verdict, (kwargs, fails)
        assert verdict.reason == id
        assert not verify("instructions", " \n", expected), "an empty answer follows nothing"


@pytest.mark.skipif(find_spec("langdetect") is None, reason="needs langdetect")
@pytest.mark.parametrize("id", IN_LANGUAGES)
def test_languages_are_told_apart(id: str) -> None:
    for kwargs, follows, fails in IN_LANGUAGES[id]:
        assert verify("instructions", follows, [{"id": id, "kwargs": kwargs}])
        assert not verify("instructions", fails, [{"id": id, "kwargs": kwargs}])


def test_all_25_kinds_have_cases_and_those_of_languages_name_their_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert CASES.keys() | IN_LANGUAGES.keys() == CHECKS.keys() and len(CHECKS) == 25
    monkeypatch.setitem(sys.modules, "langdetect", None)
    for id, ((kwargs, *_), *_) in IN_LANGUAGES.items():
        with pytest.raises(EvaluationError, match=rf"{id} needs .*pip install 'dualign\[eval\]'"):
            verify("instructions", "text", [{"id": id, "kwargs": kwargs}])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No end", 1),
        ("One. Two! Three?! “Four.” Five", 5),
        ("See e.g. Fig. 2, i.e. this.", 2),
        ("J. R. R. Tolkien wrote it.", 1),
        ("1. First\n2. Second", 1),
        ("Wait... What?", 2),
        ("一つ。二つ。", 2),
    ],
)
def test_sentences_are_counted_by_their_ends(text: str, count: int) -> None:
    """`Fig.` is no abbreviation that is known, so it ends one."""
    assert count_sentences(text) == count


def test_a_loose_reading_forgives_lines_around_the_answer_and_emphasis() -> None:
    loose = InstructionsVerifier(reading="loose")
    quoted = loose.read([{"id": "startend:quotation"}, {"id": "punctuation:no_comma"}])
    said = 'Sure, here it is:\n**"All of it."**\nBest, me'
    assert loose.judge(said, quoted)
    assert InstructionsVerifier().judge(said, quoted).reason == "startend:quotation"
    assert loose.judge('Sure:\n"All, of it."\nBye', quoted).reason == "punctuation:no_comma"


def test_rows_of_ifeval_are_read_as_they_are(tmp_path: Path) -> None:
    """Each row has all arguments of all kinds, most of them null."""
    nothing = {"num_words": None, "relation": None, "keywords": None}
    row = {
        "key": 1000,
        "prompt": "Write 3+ words without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [nothing, nothing | {"num_words": 3.0, "relation": "at least"}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "task.yaml").write_text("name: t\nrows: rows.jsonl\nverifier: instructions\n")
    task = read_task(tmp_path / "task.yaml")
    (problem,) = load_problems(task)
    expected = task.check.read(problem.expected)
    assert task.check.judge("One two three", expected)
    assert task.check.judge("One, two three", expected).reason == "punctuation:no_comma"
    assert task.check.judge("One two", expected).reason == "length_constraints:number_words"
    assert task.check.read(json.dumps(problem.expected)) == expected


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ("no commas", "takes {instruction_id_list"),
        ([], "takes {instruction_id_list"),
        (7, "takes {instruction_id_list"),
        ([{"id": "punctuation:no_coma"}], "unknown instruction 'punctuation:no_coma'.*no_comma"),
        ([{"kwargs": {}}], "unknown instruction None"),
        ([{"id": ["punctuation:no_comma"]}], "unknown instruction \\['punctuation"),
        (
            [{"id": "detectable_format:number_bullet_lists", "kwargs": {"num_bullets": 1e999}}],
            "num_bullets: expected a whole number",
        ),
        (["punctuation:no_comma"], "takes {instruction_id_list"),
        (
            {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
            "as many kwargs as instructions",
        ),
        ([{"id": "punctuation:no_comma", "kwargs": [1]}], "expected kwargs as an object"),
        ([{"id": "punctuation:no_comma", "kwargs": {"x": 1}}], "expected the kwargs none, found x"),
        (
            [{"id": "length_constraints:number_words", "kwargs": {"num_words": 3}}],
            "expected the kwargs num_words, relation, found num_words",
        ),
        (
            [
                {
                    "id": "length_constraints:number_words",
                    "kwargs": {"num_words": 3, "relation": "most"},
                }
            ],
            "relation: expected one of at least, less than, found",
        ),
        (
            [{"id": "keywords:existence", "kwargs": {"keywords": "cat"}}],
            "keywords: expected a list of texts",
        ),
        (
            [{"id": "detectable_format:number_bullet_lists", "kwargs": {"num_bullets": 1.5}}],
            "num_bullets: expected a whole number",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused(expected: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        InstructionsVerifier().read(expected)


def test_a_long_answer_of_one_sign_takes_no_time() -> None:
    """Each took more than 10 seconds when ends of sentences, brackets or blanks were looked at anew."""
    assert count_sentences("a. " * 20_000 + "1. " * 20_000) == 20_000
    for id, kwargs, text in (
        ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[" * 50_000),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "a" + " \n" * 50_000),
    ):
        assert not verify("instructions", text, [{"id": id, "kwargs": kwargs}])
