"""Hand-labelled answers for each verifier."""

import pytest

from dualign.errors import DataError, EvaluationError
from dualign.verifiers import verify

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
    assert verify("integer", answer, expected) is right


@pytest.mark.parametrize(("answer", "expected", "right"), EXACT)
def test_exact_compares_the_whole_answer(answer, expected, right):
    assert verify("exact", answer, expected) is right


@pytest.mark.parametrize(("answer", "expected", "right"), CHOICES)
def test_choice_finds_the_letter(answer, expected, right):
    assert verify("choice", answer, expected) is right


@pytest.mark.parametrize(("answer", "expected", "right"), MATHS)
def test_math_compares_values(answer, expected, right):
    pytest.importorskip("math_verify")
    assert verify("math", answer, expected) is right


def test_an_unknown_verifier_is_named_with_its_nearest():
    with pytest.raises(EvaluationError, match=r"'intger'.*did you mean 'integer'"):
        verify("intger", "1", "1")


def test_an_expected_answer_that_the_verifier_cant_read_is_refused():
    with pytest.raises(DataError, match="'seven' isn't a whole number"):
        verify("integer", "7", "seven")
    with pytest.raises(DataError, match="'four' isn't one letter"):
        verify("choice", "B", "four")
