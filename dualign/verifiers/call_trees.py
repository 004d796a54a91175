"""Compare calls with possible ones, tree by tree, by the rules of the Berkeley leaderboard (BFCL).

A call is (name, arguments); what is expected of one is {name: {parameter: [possible values]}}, where
"" among the values says that the parameter may be left out. The rules are those of BFCL's AST
evaluation of Python functions (Patil et al., ICML 2025), its special cases included:

- the types of JSON are strict (true isn't 1), but a whole number will do where a float is declared;
- texts are compared without case, blanks and the marks `,./-_*^`, on the first level of lists and
  objects, too;
- a value of another type than the declared one is right if the possible values have that type.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_TYPES: dict[str, type] = {
    "string": str,
    "any": str,
    "integer": int,
    "float": float,
    "number": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "object": dict,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
_OPTIONAL = ""
"""A possible value that says: the parameter may be left out."""

COUNT = "another number of calls"
NAME = "another function"
MISSING = "a parameter is missing"
UNKNOWN = "an unknown parameter"
TYPE = "a value of another type"
VALUE = "another value"


class Call(NamedTuple):
    """A call of a function."""

    name: str
    arguments: Mapping[str, Any]


class Function(NamedTuple):
    """A function that may be called: the types of its parameters, and which it needs."""

    name: str
    types: Mapping[str, Mapping[str, Any]]
    required: Sequence[str]

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> "Function":
        """Return the function of a schema, with or without OpenAI's envelope."""
        schema = schema.get("function") or schema
        parameters = schema.get("parameters") or {}
        return cls(
            name=schema["name"],
            types=parameters.get("properties") or {},
            required=tuple(parameters.get("required") or ()),
        )


Possible = Mapping[str, Mapping[str, Sequence[Any]]]
"""{name: {parameter: [possible values]}} of one call"""


def compare_calls(
    calls: Sequence[Call], possible: Sequence[Possible], functions: Sequence[Function]
) -> str:
    """Return why the calls aren't the possible ones in any order; "" if they are.

    Each possible call takes the first call that suits it, as BFCL does.
    """
    if len(calls) != len(possible):
        return COUNT
    by_name = {function.name: function for function in functions}
    left = list(calls)
    for item in possible:
        ((name, values),) = item.items()
        faults = [_compare_call(call, name, values, by_name[name]) for call in left]
        if "" not in faults:
            # The call of the same name tells more than others do.
            return next((fault for fault in faults if fault != NAME), NAME)
        del left[faults.index("")]
    return ""


def _compare_call(
    call: Call, name: str, possible: Mapping[str, Sequence[Any]], function: Function
) -> str:
    """Return why a call isn't the possible one; "" if it is."""
    arguments = call.arguments
    if call.name != name:
        return NAME
    if not arguments.keys() >= set(function.required):
        return MISSING
    for key, value in arguments.items():
        if key not in function.types or key not in possible:
            return UNKNOWN
        if fault := _compare_value(value, possible[key], function.types[key]):
            return fault
    optional = (_OPTIONAL in possible[key] for key in possible if key not in arguments)
    return "" if all(optional) else MISSING


def _compare_value(value: Any, possible: Sequence[Any], schema: Mapping[str, Any]) -> str:
    """Return why a value is none of the possible ones; "" if it is one."""
    declared = schema.get("type", "string")
    kind = _TYPES.get(declared, str)
    item_kind = None
    if kind is list:
        value = list(value) if isinstance(value, tuple) and declared == "tuple" else value
        item_kind = _TYPES.get((schema.get("items") or {}).get("type", ""))
    if kind is float and type(value) is int:
        value = float(value)
    if not _has_type(value, possible, kind, item_kind):
        return TYPE
    # A name in place of a value: the possible values have its type, and nothing is made alike.
    is_plain = type(value) is kind and _first_type(possible) in (None, kind)
    return "" if _is_possible(value, possible, kind if is_plain else None, item_kind) else VALUE


def _is_possible(
    value: Any, possible: Sequence[Any], kind: type | None, item_kind: type | None
) -> bool:
    if kind is dict:
        return any(_is_object(value, item) for item in possible)
    if kind is list and item_kind is dict:
        return any(_are_objects(value, item) for item in possible)
    if kind is str:
        return _plain(value) in [_plain(item) for item in possible if isinstance(item, str)]
    if kind is list:
        items = [_plain(item) for item in value]
        return items in [[_plain(part) for part in item] for item in _lists(possible)]
    return value in possible


def _has_type(value: Any, possible: Sequence[Any], kind: type, item_kind: type | None) -> bool:
    if type(value) is not kind:
        return type(value) is _first_type(possible)
    if item_kind is None or not isinstance(value, list):
        return True
    return any(
        not isinstance(item, list) or all(_has_type(part, item, item_kind, None) for part in value)
        for item in possible
    )


def _first_type(possible: Sequence[Any]) -> type | None:
    """Return the type of the first possible value; None if there is none but `_OPTIONAL`."""
    return next((type(item) for item in possible if item != _OPTIONAL), None)


def _plain(value: Any) -> Any:
    """Return a text without what isn't compared; other values as they are."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _lists(possible: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the possible lists; an empty one stands for a list that may be left out."""
    return (item for item in possible if isinstance(item, list | str))


def _is_object(value: Any, possible: Any) -> bool:
    if not (isinstance(value, dict) and isinstance(possible, dict)):
        return False
    for key, part in value.items():
        if key not in possible or _plain(part) not in [_plain(item) for item in possible[key]]:
            return False
    return all(key in value or _OPTIONAL in items for key, items in possible.items())


def _are_objects(values: Sequence[Any], possible: Any) -> bool:
    if not isinstance(possible, list | str) or len(values) != len(possible):
        return False
    return all(_is_object(value, item) for value, item in zip(values, possible, strict=True))
