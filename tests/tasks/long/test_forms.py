"""Problems in the forms of RULER: what they ask, and that the text has the answer."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from dualign.tasks.long import language as languages
from dualign.tasks.long.draft import Draft, Draw
from dualign.tasks.long.forms import FORMS
from dualign.tasks.long.language import LANGUAGES, language


def draft(form: str, code: str = "en", number: int = 0, length: int = 4096) -> Draft:
    return FORMS[form].draft(language(code), Draw(seed=0, form=form, number=number), length)


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("form", FORMS)
def test_the_text_has_what_is_expected_at_every_size_and_grows_with_it(form, code):
    problem = draft(form, code, length=1024)
    sizes = (problem.smallest, problem.smallest + 7, problem.smallest + 90)
    texts = [problem.text(size) for size in sizes]
    assert len(texts[0]) < len(texts[1]) < len(texts[2])
    for text in texts:
        assert all(value in text for value in problem.expected)
        assert not re.search(r"[{}]", text), "no field of a template is left"
    assert draft(form, code, length=1024).text(sizes[1]) == texts[1], "a seed gives one problem"
    assert draft(form, code, 1, 1024).expected != problem.expected, "each problem is another one"


def test_the_forms_are_the_thirteen_of_ruler():
    assert len({form.ruler for form in FORMS.values()}) == len(FORMS) == 13


def test_the_page_lists_every_form():
    page = (Path(__file__).parents[3] / "docs" / "long-context.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert listed == [(name, form.ruler) for name, form in FORMS.items()]


def test_each_form_asks_for_as_many_texts_as_in_ruler():
    wanted = {"multi_value": 4, "multi_query": 4, "tracking": 5, "common_words": 10} | {
        "frequent_words": 3
    }
    assert {form: len(draft(form).expected) for form in FORMS} == {
        form: wanted.get(form, 1) for form in FORMS
    }


def test_a_needle_lies_at_its_depth_and_problems_cover_the_depths():
    problem = draft("needle_essay", number=5)
    text = problem.text(200)
    place = text.index(problem.expected[0]) / len(text)
    assert place == pytest.approx(problem.extra["depth"], abs=0.03)
    depths = sorted(draft("needle", number=number).extra["depth"] for number in range(20))
    gaps = [after - before for before, after in zip([0.0, *depths], [*depths, 1.0], strict=True)]
    assert max(gaps) < 0.12, "20 problems leave no tenth of the text without a needle"


def test_a_needle_is_the_same_in_every_language_and_at_every_length():
    expected = {draft("needle", code, length=n).expected for code in LANGUAGES for n in (512, 8192)}
    assert len(expected) == 1


def test_other_keys_hide_other_values():
    problem = draft("multi_key")
    values = re.findall(r"secret numbers of (\S+) is: (\d{7})\.", problem.text(50))
    assert len(values) == 4
    asked = re.search(r"What is the secret number of (\S+) that", problem.text(50))[1]
    assert dict(values)[asked] == problem.expected[0]
    lines = draft("multi_key_uuid").text(12).split("\n")[1:-1]
    assert len(lines) == 13, "the haystack is made of needles, and holds one more"
    assert len({re.search(r"of (\S+) is", line)[1] for line in lines}) == 13


def test_a_chain_of_variables_can_be_followed_to_all_that_is_expected():
    problem = draft("tracking", number=2)
    task = problem.text(40).split("\n\n")[-1]
    value = re.search(r"assigned the value (\d{5})", problem.text(40).split("\n\n")[-1])[1]
    holds: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", task):
        holds[name] = holds.get(source, source)
    assert {name for name, held in holds.items() if held == value} == set(problem.expected)


@pytest.mark.parametrize(("length", "common", "others"), [(1024, 6, 1), (4096, 30, 3)])
def test_common_words_are_as_frequent_as_in_ruler(length, common, others):
    problem = draft("common_words", length=length)
    for size in (20, 300):  # with 300, nouns come in pairs
        listed = problem.text(size).split("\n")[-2]
        counts = Counter(re.findall(r"\d+\. (\S+)", listed))
        assert {word for word, count in counts.items() if count == common} == set(problem.expected)
        assert sum(count == others for count in counts.values()) == size
        parts = {part for word in counts for part in word.split("-") if "-" in word}
        assert not parts & set(problem.expected), "no pair repeats a common word"


def test_frequent_words_are_those_after_the_dots():
    problem = draft("frequent_words")
    counts = Counter(re.findall(r"(?<= )[a-z]{6}(?= )", problem.text(900).split("often. ")[1]))
    assert tuple(word for word, _ in counts.most_common(3)) == problem.expected
    assert [count for _, count in counts.most_common(3)] == [136, 60, 34]  # 900 * 6 / pi^2 / rank^2


def test_a_question_takes_two_documents_where_two_are_needed():
    problem = draft("question_two", number=1)
    text = problem.text(60)
    name = re.search(r"for which (.+) works", text)[1]
    company = re.search(rf"{name} works for the company (\w+)\.", text)[1]
    assert (re.search(rf"{company} has its headquarters in (\w+)\.", text)[1],) == problem.expected
    assert text.count(problem.expected[0]) == 1, "no other document has the answer"


def test_every_language_has_the_same_texts():
    def form(value):
        return (
            {key: form(item) for key, item in value.items()}
            if isinstance(value, dict)
            else type(value)
        )

    files = [yaml.safe_load(languages._file(code).read_text("utf-8")) for code in LANGUAGES]
    assert all(form(texts) == form(files[0]) for texts in files)
    for code in LANGUAGES:
        words = language(code).words
        assert len(words) == len(set(words)) >= 170
        folded = [word.lower() for word in words]
        assert not [(a, b) for a in folded for b in folded if a != b and a in b], (
            "a word in another one would be found in an answer that has the other"
        )
