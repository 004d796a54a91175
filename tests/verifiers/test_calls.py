"""Calls that models write, in the forms of their templates, against calls that are possible."""

from typing import Any

import pytest

from dualign.errors import DataError
from dualign.verifiers.call_trees import (
    COUNT,
    MISSING,
    NAME,
    TYPE,
    UNKNOWN,
    VALUE,
    Call,
    Function,
    compare_calls,
)
from dualign.verifiers.table import verify
from dualign.verifiers.written_calls import UnreadableCall, read_calls


def schema(name: str, required: list[str], **types: Any) -> dict[str, Any]:
    properties = {
        key: {"type": value} if isinstance(value, str) else value for key, value in types.items()
    }
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": "", "parameters": parameters}


LOOK = schema("look", ["x"], x="integer", s="string")
STOP = schema("stop", [])
FUNCTIONS = [Function.of(LOOK), Function.of(STOP)]
LOOK_1, BOTH = [("look", {"x": 1})], [("look", {"x": 1}), ("stop", {})]

WRITTEN = [
    ('<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call>', LOOK_1),
    ('Well.\n<tool_call>{"name": "look", "arguments": "{\\"x\\": 1}"}', LOOK_1),
    (
        '<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
        BOTH,
    ),
    (
        "<tool_call>\n<function=look>\n<parameter=x>\n1\n</parameter>\n<parameter=s>\n12\n</parameter>\n"
        "</function>\n</tool_call>",
        [("look", {"x": 1, "s": "12"})],
    ),
    ("<tool_call>look\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", LOOK_1),
    ('<invoke name="look"><parameter name="x">1</parameter></invoke>', LOOK_1),
    ('<function=look>{"x": 1}</function>', LOOK_1),
    ('[TOOL_CALLS] [{"name": "look", "arguments": {"x": 1}}, {"name": "stop"}]', BOTH),
    ('[TOOL_CALLS]look[ARGS]{"x": 1}[TOOL_CALLS]stop[CALL_ID]a1B2c3d4e[ARGS]{}', BOTH),
    ('<|python_tag|>{"name": "look", "parameters": {"x": 1}}; {"name": "stop"}', BOTH),
    ('<|tool_call|>[{"name": "look", "arguments": {"x": 1}}]', LOOK_1),
    (
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function"
        '<\uff5ctool\u2581sep\uff5c>look\n```json\n{"x": 1}\n```<\uff5ctool\u2581call\u2581end\uff5c>',
        LOOK_1,
    ),
    (
        '<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|>',
        LOOK_1,
    ),
    (
        '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"x": 1}<|call|>',
        LOOK_1,
    ),
    ("<|tool_call_start|>[look(x=1), stop()]<|tool_call_end|>", BOTH),
    ("<code>\nresult = look(x=1)\nprint(stop())\n</code>", BOTH),
    ("```tool_code\nprint(look(x=1))\n```", LOOK_1),
    ('{"name": "look", "parameters": {"x": 1}}', LOOK_1),
    ('```json\n[{"name": "look", "arguments": {"x": 1}}]\n```', LOOK_1),
    ("[look(x=1), stop()]", BOTH),
    ("look(x=-1, s=PARIS)", [("look", {"x": -1, "s": "PARIS"})]),
    ("look(1)", [("look", {})]),
    ("No function fits; look(x=1) would need a number.", []),
    ('{"name": "Ada", "arguments": {}}', []),
    ('{"answer": 1}', []),
    ("[1, 2]", []),
    ("42", []),
    ("", []),
    ("look(x={[1]: 2})", []),
    ("((((" * 5000, []),
]


@pytest.mark.parametrize(("text", "calls"), WRITTEN, ids=range(len(WRITTEN)))
def test_calls_are_read_in_the_form_of_each_family(text: str, calls: list[Any]) -> None:
    assert [tuple(call) for call in read_calls(text, FUNCTIONS)] == calls


@pytest.mark.parametrize("body", ["", "{broken", "I would call look", "[1, 2]", "\n" * 9999])
def test_marks_around_no_call_are_told_from_no_marks(body: str) -> None:
    with pytest.raises(UnreadableCall):
        read_calls(f"<tool_call>{body}</tool_call>", FUNCTIONS)


KINDS = schema(
    "book",
    ["day"],
    day="string",
    seats="integer",
    price="float",
    quiet="boolean",
    stops={"type": "array", "items": {"type": "string"}},
    legs={"type": "array", "items": {"type": "dict"}},
    guest={"type": "dict", "properties": {}},
)
POSSIBLE = {
    "day": ["April 1, 2024", "tomorrow"],
    "seats": [2, 3, ""],
    "price": [5, ""],
    "quiet": [True, ""],
    "stops": [["Bonn", "Köln"], ""],
    "legs": [[{"to": ["Bonn"], "by": ["train", ""]}], ""],
    "guest": [{"name": ["Ada"], "age": [36, ""]}, ""],
}
TREES = [
    ({}, ""),
    ({"day": "april 1 2024"}, ""),
    ({"day": "April 2, 2024"}, VALUE),
    ({"day": 1}, TYPE),
    ({"seats": 2}, ""),
    ({"seats": 2.0}, TYPE),
    ({"seats": True}, TYPE),
    ({"seats": "2"}, TYPE),
    ({"seats": 4}, VALUE),
    ({"seats": None}, TYPE),
    ({"price": 5}, ""),
    ({"price": 5.0}, ""),
    ({"price": 5.5}, VALUE),
    ({"quiet": 1}, TYPE),
    ({"stops": ["bonn", "Köln."]}, ""),
    ({"stops": ["Köln", "Bonn"]}, VALUE),
    ({"stops": "Bonn"}, TYPE),
    ({"legs": [{"to": "bonn"}]}, ""),
    ({"legs": [{"to": "bonn", "by": "car"}]}, VALUE),
    ({"legs": [{"to": "bonn"}, {"to": "bonn"}]}, VALUE),
    ({"guest": {"name": "ADA"}}, ""),
    ({"guest": {"name": "Ada", "age": 37}}, VALUE),
    ({"guest": {"age": 36}}, VALUE),
    ({"guest": {"name": "Ada", "town": "Bonn"}}, VALUE),
    ({"color": "red"}, UNKNOWN),
]


@pytest.mark.parametrize(("arguments", "fault"), TREES, ids=map(repr, TREES))
def test_arguments_are_compared_by_type_then_by_possible_values(
    arguments: dict[str, Any], fault: str
) -> None:
    call = Call("book", {"day": "tomorrow", **arguments})
    assert compare_calls([call], [{"book": POSSIBLE}], [Function.of(KINDS)]) == fault


def test_a_parameter_that_is_required_or_not_optional_is_missed() -> None:
    function = Function.of(schema("f", ["a"], a="integer", b="integer", c="integer"))
    possible = [{"f": {"a": [1], "b": [2], "c": [3, ""]}}]
    assert compare_calls([Call("f", {"a": 1, "b": 2})], possible, [function]) == ""
    assert compare_calls([Call("f", {"a": 1, "c": 3})], possible, [function]) == MISSING
    assert compare_calls([Call("f", {"b": 2})], possible, [function]) == MISSING


def test_several_calls_may_come_in_any_order_and_each_counts_once() -> None:
    possible = [{"look": {"x": [1], "s": [""]}}, {"look": {"x": [2], "s": [""]}}]
    first, second, stop = Call("look", {"x": 1}), Call("look", {"x": 2}), Call("stop", {})
    assert compare_calls([second, first], possible, FUNCTIONS) == ""
    assert compare_calls([first, first], possible, FUNCTIONS) == VALUE
    assert compare_calls([first], possible, FUNCTIONS) == COUNT
    assert compare_calls([first, second, second], possible, FUNCTIONS) == COUNT
    assert compare_calls([first, stop], possible, FUNCTIONS) == NAME


def expected(calls: Any) -> dict[str, Any]:
    return {"functions": [{"type": "function", "function": LOOK}, STOP], "calls": calls}


def test_the_verifier_says_why_calls_are_wrong() -> None:
    said = '<tool_call>{"name": "look", "arguments": {"x": 1}}</tool_call>'
    broken = "<tool_call>look at 1</tool_call>"
    possible = [{"look": {"x": [1], "s": [""]}}]
    verdicts = {
        (answer, str(calls)): verify("calls", answer, expected(calls))
        for answer in (said, broken, "I can't.")
        for calls in (possible, [], None)
    }
    assert [(verdict.right, verdict.reason) for verdict in verdicts.values()] == [
        (True, ""),
        (False, "a call where none fits"),
        (True, ""),
        (False, "unreadable call"),
        (True, ""),
        (False, "unreadable call"),
        (False, "no call"),
        (True, ""),
        (False, "no call"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        "look(x=1)",
        {"calls": []},
        {"functions": {}, "calls": []},
        {"functions": [{"name": 1}], "calls": []},
        {"functions": [{"name": "f", "parameters": {"properties": {"x": 1}}}], "calls": []},
        expected([{"look": {"x": 1}}]),
        expected([{"look": {}, "stop": {}}]),
        expected("look"),
        expected([{"lock": {}}]),
    ],
)
def test_expected_calls_that_cannot_be_read_are_refused(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"calls|lock"):
        verify("calls", "", wrong)
