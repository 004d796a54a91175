"""Hand-labelled answers for each verifier."""

import re
from pathlib import Path

import pytest

from dualign.errors import DataError, EvaluationError
from dualign.verifiers.contains import ContainsVerifier
from dualign.verifiers.json_schema import JsonSchemaVerifier
from dualign.verifiers.regex import RegexVerifier
from dualign.verifiers.table import VERIFIERS, verifier_of, verify

INTEGERS = [
    ("42", "42", True),
    ("The answer is 42.", "42", True),
    ("3 + 4 = 7", "7", True),
    ("7 = 3 + 4", "7", False),
    ("That makes 1,204 in all", "1204", True),
    ("It is 1,204, I think", "1204", True),
    ("1204", "1,204", True),
    ("= -5", "-5", True),
    ("= \u22125", "-5", True),
    ("10-5", "5", True),
    ("10-5", "-5", False),
    ("**42**", "42", True),
    ("\\boxed{42}", "42", True),
    ("$42", "42", True),
    ("42.0", "42", True),
    ("42.5", "42", False),
    ("4.42", "42", False),
    ("the 42nd", "42", True),
    ("5km", "5", True),
    ("1, 2, 3", "3", True),
    ("1,2,3", "3", True),
    ("007", "7", True),
    ("H2", "2", False),
    ("forty-two", "42", False),
    ("", "42", False),
    ("12 34", "1234", False),
]
EXACT = [
    ("Red", "red", True),
    (" red. ", "red", True),
    ("**Red**", "red", True),
    ('"red"', "red", True),
    ("the  red\ncup", "the red cup", True),
    ("not red", "red", False),
    ("red or blue", "red", False),
    ("", "red", False),
]
CHOICES = [
    ("B", "B", True),
    ("(B)", "B", True),
    ("B.", "B", True),
    ("B) four", "B", True),
    ("**B**", "B", True),
    ("B: four", "B", True),
    ("The answer is B.", "B", True),
    ("The answer is (B).", "B", True),
    ("Answer: B", "B", True),
    ("\\boxed{B}", "B", True),
    ("\\boxed{\\text{B}}", "B", True),
    ("I'd say C, no, the answer is B", "B", True),
    ("Both A and C are wrong, so B", "B", True),
    ("Answer: B, since A is too small", "B", True),
    ("Die Antwort ist B, nicht A", "B", True),
    ("Réponse : B\n(A est faux)", "B", True),
    ("Respuesta: B. El resto, como A, no.", "B", True),
    ("La risposta è B, non A", "B", True),
    ("Resposta: B\nE não A", "B", True),
    ("A good guess is B", "B", True),
    ("B", "C", False),
    ("The answer is C, not B.", "B", False),
    ("Because of that", "B", False),
    ("", "A", False),
]
MATHS = [
    ("The result is $\\frac{1}{2}$.", "1/2", True),
    ("0.5", "\\frac{1}{2}", True),
    ("\\boxed{x^2+2x+1}", "(x+1)^2", True),
    ("$x = 3$", "3", True),
    ("$\\sqrt{8}$", "2\\sqrt{2}", True),
    ("$\\frac{1}{3}$", "1/2", False),
    ("no idea", "7", False),
]


@pytest.mark.parametrize(("answer", "expected", "right"), INTEGERS)
def test_integer_takes_the_last_number(answer, expected, right):
    assert verify("integer", answer, expected).right is right


@pytest.mark.parametrize(("answer", "expected", "right"), EXACT)
def test_exact_compares_the_whole_answer(answer, expected, right):
    assert verify("exact", answer, expected).right is right


@pytest.mark.parametrize(("answer", "expected", "right"), CHOICES)
def test_choice_finds_the_letter(answer, expected, right):
    assert verify("choice", answer, expected).right is right


@pytest.mark.parametrize(("answer", "expected", "right"), MATHS)
def test_math_compares_values(answer, expected, right):
    pytest.importorskip("math_verify")
    assert verify("math", answer, expected).right is right


REGEXES = [
    (None, "It is 12 km.", r"\d+ ?km", ""),
    (None, "It is far.", r"\d+ ?km", "no match"),
    (r"Answer: (\w+)", "Answer: red. No! Answer: Blue", "blue", ""),
    (r"Answer: (\w+)", "Answer: blue. No! Answer: red", "blue", "differs"),
    (r"[A-Z]{2}\d", "so AB7", "ab7", ""),
    (r"Answer: (\w+)", "blue", "blue", "no match"),
    (r"Answer:(x)?", "Answer:", "x", "differs"),
]
SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "ages": {"items": {"type": "integer"}}},
}
JSONS = [
    ('{"name": "a", "ages": [1]}', ""),
    ('So:\n```json\n{"name": "a"}\n```\nDone.', ""),
    ('```\n{"name": 1}\n```\nor\n~~~\n{"name": "a"}\n~~~', ""),
    ('```json\n{"name": "cut"}', ""),
    ('The name is {"name": "a"}', "not JSON"),
    ('{"name": NaN}', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("", "not JSON"),
    ("{}", "schema: $ (required)"),
    ('{"name": "a", "ages": [1, "x", "y"]}', "schema: $.ages[] (type)"),
]


@pytest.mark.parametrize(("pattern", "answer", "expected", "reason"), REGEXES)
def test_regex_searches_or_compares_what_it_finds(pattern, answer, expected, reason):
    verdict = verify(RegexVerifier(pattern=pattern), answer, expected)
    assert (verdict.right, verdict.reason) == (not reason, reason)


def test_contains_takes_one_text_or_several():
    assert verify("contains", "Paris, France", "Paris")
    assert verify("contains", "Paris, France", ["Paris", "France"])
    assert verify("contains", "Paris", ["Paris", "France"]).reason == "text is missing"
    assert not verify("contains", "PARIS", "Paris")
    either = ContainsVerifier(need="any", ignore_case=True)
    assert verify(either, "PARIS", ["Lutetia", "Paris"])
    assert not verify(either, "Rome", ["Lutetia", "Paris"])
    for unreadable in ([], [""], {"a": 1}, [["Paris"]]):
        with pytest.raises(DataError, match="takes text, or a list of texts"):
            verify("contains", "Paris", unreadable)


@pytest.mark.parametrize(("answer", "reason"), JSONS)
def test_json_schema_takes_json_alone_or_in_a_fence(answer, reason):
    pytest.importorskip("jsonschema")
    verdict = verify("json_schema", answer, SCHEMA)
    assert (verdict.right, verdict.reason) == (not reason, reason)
    assert verify(JsonSchemaVerifier(schema=SCHEMA), answer, None) == verdict


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "not a JSON Schema: 'objekt'"),
        ("{", "isn't JSON"),
        ("3", "a JSON Schema is an object, found 3"),
        ({"$ref": "http://localhost:1/x.json"}, "'http://localhost:1/x.json', which isn't in it"),
        ({"$id": "http://localhost:1/a", "$ref": "b"}, "'b', which isn't in it"),
        ({"allOf": [{"$ref": "#/$defs/no"}]}, "'#/\\$defs/no', which isn't in it"),
    ],
)
def test_a_schema_that_cant_be_used_is_refused_and_nothing_is_fetched(schema, message):
    pytest.importorskip("jsonschema")
    with pytest.raises(DataError, match=message):
        verify("json_schema", "1", schema)


def test_a_schema_refers_to_its_own_parts():
    pytest.importorskip("jsonschema")
    parts = {"$defs": {"n": {"$anchor": "n", "type": "integer"}}}
    for reference in ("#/$defs/n", "#n"):
        assert verify("json_schema", "1", {"$ref": reference, **parts})
        assert not verify("json_schema", "true", {"$ref": reference, **parts})


def test_recall_is_the_share_of_the_texts_that_the_answer_contains_whatever_their_case():
    texts = ["AB1", "cd2", "ef3", "gh4"]
    half = verify("recall", "ab1, then CD2.", texts)
    assert (half.right, half.score, half.reason) == (False, 0.5, "text is missing")
    whole = verify("recall", "EF3 gh4 ab1 cd2", texts)
    assert (whole.right, whole.score) == (True, 1.0)
    assert verify("recall", "", "x").score == 0.0
    assert verify("contains", "x", "x").score is None, "a verifier that doesn't grade gives none"
    with pytest.raises(DataError, match="the verifier recall takes text, or a list of texts"):
        verify("recall", "x", {"a": 1})


def test_the_page_lists_every_verifier():
    page = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text()
    listed = dict.fromkeys(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert list(listed) == list(VERIFIERS)


def test_an_unknown_verifier_is_named_with_its_nearest():
    with pytest.raises(EvaluationError, match=r"'intger'.*did you mean 'integer'"):
        verify("intger", "1", "1")


def test_an_expected_answer_that_the_verifier_cant_read_is_refused():
    with pytest.raises(DataError, match="'seven' isn't a whole number"):
        verify("integer", "7", "seven")
    with pytest.raises(DataError, match="'four' isn't one letter"):
        verify("choice", "B", "four")
    with pytest.raises(DataError, match="isn't a regular expression"):
        verify("regex", "a", "(")
    with pytest.raises(DataError, match=r"\['a'\]: the verifier exact takes text or a number"):
        verify("exact", "a", ["a"])


def test_json_that_no_schema_expects_is_wrong_and_no_traceback():
    pytest.importorskip("jsonschema")
    deep = "[" * 300 + "]" * 300
    assert verify("json_schema", deep, {"items": {"$ref": "#"}}).reason == "too deep"
    huge = "1" + "0" * 400
    assert verify("json_schema", huge, {"multipleOf": 0.5}).reason == "number too large"
    with pytest.raises(DataError, match="leads to itself without end"):
        verify("json_schema", "1", {"$ref": "#"})


def test_patterns_of_a_schema_are_searched_as_those_of_regex():
    pytest.importorskip("jsonschema")
    # As by `re`, this would take years.
    reason = verify("json_schema", f'"{"a" * 40}!"', {"pattern": "^(a+)+$"}).reason
    assert reason == "schema: $ (pattern)"
    schema = {"patternProperties": {"^a": {"type": "integer", "maximum": 3}}}
    assert verify("json_schema", '{"a": 3, "b": "x"}', schema)
    assert verify("json_schema", '{"ab": 4}', schema).reason == "schema: $.ab (maximum)"


def test_braces_of_a_pattern_mean_what_they_mean_to_re():
    assert not verify("regex", "aaX", "^a{e}$")  # to the package regex: a with any error
    assert verify("regex", "a{e}", "^a{e}$")
    assert not verify("regex", r"\fra{}{dx}", r"\\frac{d}{dx}")
    assert verify("regex", r"\frac{d}{dx}", r"\\frac{d}{dx}")
    assert verify("regex", "aa1", r"^a{2}\N{DIGIT ONE}{1,}$")


@pytest.mark.parametrize(
    ("kind", "answers", "other"),
    [
        ("integer", ["3 + 4 = 7", "**7**", "7.0", "It is 007"], "1,204"),
        ("integer", ["-0", "0", "0.00"], "-1"),
        ("choice", ["B) four", "The answer is B", "B"], "C"),
        ("exact", ["Red.", "**red**"], "blue"),
        (RegexVerifier(pattern=r"#### (\d+)"), ["#### 7", "so\n#### 7\n"], "#### 8"),
    ],
)
def test_answers_that_say_the_same_vote_alike(kind, answers, other):
    verifier = verifier_of(kind)
    votes = {verifier.vote(answer, None) for answer in answers}
    assert verifier.can_vote and len(votes) == 1 and None not in votes
    assert verifier.vote(other, None) not in votes
    assert verifier.vote("", None) is None


def test_values_of_mathematics_vote_by_their_number():
    pytest.importorskip("math_verify")
    math = verifier_of("math")
    assert (
        math.vote("$\\frac{1}{2}$", None) == math.vote("$0.5$", None) != math.vote("$0.25$", None)
    )
    assert math.vote("$x + 1$", None) == math.vote("$1 + x$", None)
    assert math.vote("no idea", None) is None


def test_only_kinds_that_compare_what_an_answer_says_vote():
    silent = {"contains", "json_schema", "instructions", "unit_tests", "python", "recall", "regex"}
    for name, kind in VERIFIERS.items():
        settings = dict.fromkeys(kind.needed(), "x")
        assert kind(**settings).can_vote is (name not in silent), name
