"""Check that the answer follows instructions, by the checks of IFEval (arXiv 2311.07911)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from dualign.config import nearest
from dualign.errors import DataError, EvaluationError, excerpt
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong
from dualign.verifiers.instruction_checks import (
    CHECKS,
    LANGUAGE_PACKAGE,
    RELATIONS,
    InstructionCheck,
    Kind,
)

_FORM = "{instruction_id_list: [...], kwargs: [{...}, ...]}, or a list of {id: ..., kwargs: {...}}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Instruction:
    """An instruction of a row: which check, with which arguments."""

    id: str
    arguments: Mapping[str, Any]

    def is_followed(self, text: str) -> bool:
        return bool(text.strip()) and CHECKS[self.id].follows(text, **self.arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionsVerifier(Verifier):
    """The answer follows all of the row's instructions, such as a number of words or no commas."""

    takes_lists: ClassVar[bool] = True
    row_fields: ClassVar[tuple[str, ...]] = ("instruction_id_list", "kwargs")
    kind: Literal["instructions"] = "instructions"
    """this kind of verifier"""
    reading: Literal["strict", "loose"] = "strict"
    """strict: the answer as it is; loose: an instruction may also be followed by the answer without its
    first line, its last line, both, or the asterisks
    """

    def read(self, expected: Any) -> tuple[_Instruction, ...]:
        if isinstance(expected, str):
            try:
                expected = json.loads(expected)
            except ValueError:
                raise DataError(_unreadable(expected)) from None
        instructions = tuple(_instruction(id, kwargs) for id, kwargs in _entries(expected))
        if not instructions:
            raise DataError(_unreadable(expected))
        return instructions

    @property
    def can_vote(self) -> bool:
        """Whole texts pass, which are rarely the same twice."""
        return False

    def judge(self, answer: str, expected: Any) -> Verdict:
        texts = _loose_readings(answer) if self.reading == "loose" else [answer]
        for instruction in expected:
            if not any(instruction.is_followed(text) for text in texts):
                return wrong(instruction.id)
        return RIGHT


def _loose_readings(answer: str) -> list[str]:
    """Return the answer and what is left without lines of politeness and without emphasis (section 2.2)."""
    lines = answer.split("\n")
    parts = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = ["\n".join(part).strip() for part in parts]
    return [answer, *texts, *(text.replace("*", "") for text in texts)]


def _unreadable(expected: Any) -> str:
    return f"expected answer {excerpt(expected)}: the verifier instructions takes {_FORM}"


def _entries(expected: Any) -> Iterator[tuple[Any, Any]]:
    """Yield id and arguments of each instruction, of either form."""
    if isinstance(expected, Mapping) and "instruction_id_list" in expected:
        ids, kwargs = expected["instruction_id_list"], expected.get("kwargs")
        if isinstance(kwargs, str):
            try:
                kwargs = json.loads(kwargs)
            except ValueError:
                raise DataError(_unreadable(expected)) from None
        if not (isinstance(ids, list) and isinstance(kwargs, list) and len(ids) == len(kwargs)):
            raise DataError(f"{_unreadable(expected)}, with as many kwargs as instructions")
        yield from zip(ids, kwargs, strict=True)
        return
    if not isinstance(expected, list) or not all(isinstance(item, Mapping) for item in expected):
        raise DataError(_unreadable(expected))
    for item in expected:
        yield item.get("id"), item.get("kwargs")


def _instruction(id: Any, kwargs: Any) -> _Instruction:
    """Return an instruction that can be checked. Arguments that are null, as `datasets` pads rows, are none.

    Raises:
        DataError: no such check, or arguments that it doesn't take.
        EvaluationError: a package is missing.
    """
    if not isinstance(id, str) or id not in CHECKS:
        hint = nearest(str(id), [*CHECKS])
        raise DataError(f"unknown instruction {id!r}{hint}; IFEval's are known (docs/verifiers.md)")
    check = CHECKS[id]
    if check.needs_language and find_spec(LANGUAGE_PACKAGE) is None:
        raise EvaluationError(
            f"the instruction {id} needs the package {LANGUAGE_PACKAGE}: pip install 'dualign[eval]'"
        )
    if not isinstance(kwargs, Mapping | None):
        raise DataError(f"instruction {id}: expected kwargs as an object, found {excerpt(kwargs)}")
    arguments = {name: value for name, value in (kwargs or {}).items() if value is not None}
    _require_arguments(id, check, arguments)
    return _Instruction(
        id=id,
        arguments={name: _value(check.arguments[name], value) for name, value in arguments.items()},
    )


def _require_arguments(id: str, check: InstructionCheck, arguments: Mapping[str, Any]) -> None:
    if arguments.keys() != check.arguments.keys():
        takes = ", ".join(check.arguments) or "none"
        raise DataError(
            f"instruction {id}: expected the kwargs {takes}, found {', '.join(arguments) or 'none'}"
        )
    for name, value in arguments.items():
        if _value(check.arguments[name], value) is None:
            form = {"text": "text", "texts": "a list of texts", "number": "a whole number"}
            words = form.get(check.arguments[name], f"one of {', '.join(RELATIONS)}")
            raise DataError(f"instruction {id}: {name}: expected {words}, found {excerpt(value)}")


def _value(kind: Kind, value: Any) -> Any:
    """Return an argument as its check takes it; None if it isn't of its kind."""
    if kind == "number":
        is_float = isinstance(value, float) and value.is_integer()
        is_whole = is_float or (isinstance(value, int) and not isinstance(value, bool))
        return int(value) if is_whole and value >= 0 else None
    if kind == "relation":
        return value if value in RELATIONS else None
    if kind == "text":
        return value if isinstance(value, str) and value.strip() else None
    is_list = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    return value if is_list else None
