"""Compare the calls that an answer makes with possible ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from dualign.errors import DataError, excerpt
from dualign.verifiers.base import RIGHT, Verdict, Verifier, wrong
from dualign.verifiers.call_trees import Call, Function, Possible, compare_calls
from dualign.verifiers.written_calls import UnreadableCall, read_calls

_FORM = (
    "{functions: [schemas], calls: [{NAME: {PARAMETER: [possible values]}}, ...]}; no calls in the list: "
    "none may be made; without the key: one or more of any kind"
)


class _Expected(NamedTuple):
    functions: Sequence[Function]
    possible: Sequence[Possible] | None
    """None: any call will do"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallsVerifier(Verifier):
    """The answer calls functions as it may, or none where none fits; by the rules of BFCL."""

    takes_lists: ClassVar[bool] = True
    kind: Literal["calls"] = "calls"
    """this kind of verifier"""

    def read(self, expected: Any) -> _Expected:
        if isinstance(expected, str):
            try:
                expected = json.loads(expected)
            except ValueError:
                raise DataError(_unreadable(expected)) from None
        if not isinstance(expected, Mapping) or not _are_schemas(expected.get("functions")):
            raise DataError(_unreadable(expected))
        functions = [Function.of(schema) for schema in expected["functions"]]
        possible = expected.get("calls")
        if possible is None:
            return _Expected(functions, None)
        names = {function.name for function in functions}
        if not isinstance(possible, list) or not all(_is_possible(item) for item in possible):
            raise DataError(_unreadable(expected))
        unknown = [name for item in possible for name in item if name not in names]
        if unknown:
            raise DataError(
                f"expected a call of {unknown[0]!r}, which is none of the functions {sorted(names)}"
            )
        return _Expected(functions, possible)

    def judge(self, answer: str, expected: Any) -> Verdict:
        functions, possible = expected
        try:
            calls: list[Call] | None = read_calls(answer, functions)
        except UnreadableCall:
            calls = None
        if possible is None:
            return RIGHT if calls else wrong("no call" if calls == [] else "unreadable call")
        if not possible:  # BFCL takes what can't be read for no call
            return wrong("a call where none fits") if calls else RIGHT
        if not calls:
            return wrong("no call" if calls == [] else "unreadable call")
        fault = compare_calls(calls, possible, functions)
        return wrong(fault) if fault else RIGHT


def _are_schemas(value: Any) -> bool:
    """Return whether a value is a list of schemas with a name and an object of parameters."""
    if not isinstance(value, list):
        return False
    for item in value:
        inner = item.get("function", item) if isinstance(item, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            return False
        parameters = inner.get("parameters") or {}
        if not isinstance(parameters, Mapping) or not _are_objects(parameters.get("properties")):
            return False
    return True


def _are_objects(value: Any) -> bool:
    if not isinstance(value, Mapping | None):
        return False
    return all(isinstance(item, Mapping) for item in (value or {}).values())


def _is_possible(item: Any) -> bool:
    """Return whether an item is {name: {parameter: [values]}}."""
    if not isinstance(item, Mapping) or len(item) != 1:
        return False
    (parameters,) = item.values()
    return isinstance(parameters, Mapping) and all(
        isinstance(values, list) for values in parameters.values()
    )


def _unreadable(expected: Any) -> str:
    return f"expected calls {excerpt(expected)}: the verifier calls takes {_FORM}"
