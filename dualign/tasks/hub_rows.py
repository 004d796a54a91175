"""Rows of published data sets as questions: the prompts of SmolLM3's evaluation scripts, in lighteval.

A reader takes a row of one data set and returns its question; or, as text, why the row isn't asked.
"""

import base64
import json
import pickle
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question with its instruction, and what is expected."""

    text: str
    bare: str
    """without the instruction"""
    expected: Any
    id: str | None = None


Reader = Callable[[Row], Question | str]

_MATH = (
    "Solve the following math problem efficiently and clearly.  The last line of your response should "
    "be of the following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is "
    "correct' (without quotes) where ANSWER is just the final number or expression that solves the "
    "problem. Think step by step before answering.\n\n"
)
_CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the "
    "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by "
    "step before answering.\n\n"
)
_CODE = (
    "You will be given a question (problem specification) and will generate a correct Python program "
    "that matches the specification and passes all tests.\n\n"
)
_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your "
    "code within delimiters."
)
_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test "
    "on the sample inputs). Enclose your code within delimiters as follows."
)
_LETTERS = "ABCD"


def aime(row: Row) -> Question | str:
    """Read a row of AIME: `problem` and `answer`."""
    problem = str(row["problem"])
    return Question(text=_MATH + problem, bare=problem, expected=str(row["answer"]))


def gsm_plus(row: Row) -> Question | str:
    """Read a row of GSM-Plus; those that lack a fact have no answer to be compared."""
    if row["perturbation_type"] == "critical thinking":
        return "critical thinking"
    question = str(row["question"])
    return Question(text=_MATH + question, bare=question, expected=str(row["answer"]))


def gpqa(row: Row) -> Question | str:
    """Read a row of GPQA; where the right choice stands is drawn from the question, the same each time."""
    question = str(row["Question"]).strip()
    place = random.Random(question).randrange(len(_LETTERS))
    choices = [str(row[f"Incorrect Answer {number}"]).strip() for number in (1, 2, 3)]
    choices.insert(place, str(row["Correct Answer"]).strip())
    listed = "\n".join(f"{letter}) {text}" for letter, text in zip(_LETTERS, choices, strict=True))
    return Question(
        text=f"{_CHOICE}{question}\n\n{listed}", bare=question, expected=_LETTERS[place]
    )


def ifeval(row: Row) -> Question | str:
    """Read a row of IFEval: the instructions are in the prompt."""
    expected = {name: row[name] for name in ("instruction_id_list", "kwargs")}
    text = str(row["prompt"])
    return Question(text=text, bare=text, expected=expected, id=str(row["key"]))


class Tests(str):
    """Tests of a program: as text their number and hash, since they may have megabytes."""

    __slots__ = ("code",)
    code: Any
    """what the verifier unit_tests takes"""

    @classmethod
    def of(cls, code: Any, count: int) -> "Tests":
        digest = sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:12]
        tests = cls(f"{count} tests, {digest}")
        tests.code = code
        return tests


def livecodebench(row: Row) -> Question | str:
    """Read a row of LiveCodeBench: a program with standard input, or a function with starter code."""
    cases = _cases(row["public_test_cases"]) + _cases(row["private_test_cases"])
    content, starter = str(row["question_content"]), row.get("starter_code")
    task = (
        f"{_STARTER}```python\n{starter}\n```\n\n"
        if starter
        else f"{_STDIN}```python\n# YOUR CODE HERE\n```\n\n"
    )
    function = json.loads(row.get("metadata") or "{}").get("func_name")
    code = _asserts(cases, function) if function else cases
    return Question(
        text=f"{_CODE}Question: {content}\n\n{task}",
        bare=content,
        expected=Tests.of(code, len(cases)),
        id=str(row["question_id"]) if row.get("question_id") is not None else None,
    )


class _TextOnly(pickle.Unpickler):
    """Unpickles text, numbers and containers of them: LiveCodeBench packs its JSON in a pickle."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no text")


def _cases(packed: Any) -> list[dict[str, str]]:
    """Return the cases of a row: JSON, or JSON in a pickle, compressed, in base64."""
    try:
        cases = json.loads(packed)
    except ValueError:
        try:
            data = zlib.decompress(base64.b64decode(packed))
            cases = json.loads(_TextOnly(BytesIO(data)).load())
        except (zlib.error, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"test cases: {error}") from None
    return [{"input": str(case["input"]), "output": str(case["output"])} for case in cases]


def _asserts(cases: list[dict[str, str]], function: str) -> str:
    """Return Python that asserts what `Solution().function` gives; arguments stand as JSON in lines."""
    texts = [(case["input"], case["output"]) for case in cases]
    return (
        "import json\n"
        f"for _input, _output in {texts!r}:\n"
        "    _arguments = [json.loads(line) for line in _input.split('\\n') if line.strip()]\n"
        f"    _result = Solution().{function}(*_arguments)\n"
        "    _result = list(_result) if isinstance(_result, tuple) else _result\n"
        "    assert _result == json.loads(_output)\n"
    )


def global_mmlu(instruction: str, question: str, choices: str) -> Reader:
    """Return the reader of Global-MMLU in a language: its instruction, and the words above the parts."""

    def read(row: Row) -> Question | str:
        options = [str(row[f"option_{letter}"] or "").strip() for letter in "abcd"]
        if not all(options):
            return "a choice is empty"
        listed = "\n".join(
            f"{letter}) {text}" for letter, text in zip(_LETTERS, options, strict=True)
        )
        bare = str(row["question"])
        text = f"{instruction}\n\n###\n{question}:\n{bare}\n###\n{choices}:\n{listed}"
        return Question(text=text, bare=bare, expected=str(row["answer"]), id=row.get("sample_id"))

    return read
