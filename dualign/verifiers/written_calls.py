"""Read the calls that a model wrote, in the form of its chat template: XML, JSON or Python.

Marks say where a call is. Between them stands JSON (Hermes, Qwen, SmolLM3, Mistral, Llama, Granite,
DeepSeek, Kimi), XML (Qwen3-Coder, GLM, MiniMax), or Python (LFM2, Gemma, SmolLM3's `<code>`). Without
marks a whole answer may be calls as JSON or Python. Nothing that a model wrote is run.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dualign.verifiers.call_trees import Call, Function


class UnreadableCall(ValueError):
    """There are marks of a call, and no call can be read between them."""


_END = r"(?:{}|\Z)"
_MARKS = tuple(
    re.compile(opening + r"(?P<body>.*?)" + _END.format(closing), re.DOTALL)
    for opening, closing in (
        (r"<tool_call>", r"</tool_call>|(?=<tool_call>)"),
        (r"<\|tool_call_start\|>", r"<\|tool_call_end\|>"),
        (r"<\|tool_call_begin\|>", r"<\|tool_call_end\|>"),
        (r"<\|tool_call\|>", r"<\|/tool_call\|>|(?=<\|tool_call\|>)"),
        (r"<\uff5ctool\u2581call\u2581begin\uff5c>", r"<\uff5ctool\u2581call\u2581end\uff5c>"),
        (r"\[TOOL_CALLS\]", r"(?=\[TOOL_CALLS\])"),
        (r"<\|python_tag\|>", r"<\|eom_id\|>|<\|eot_id\|>"),
        (r"<\|start\|>assistant(?= to=functions\.)", r"<\|call\|>"),
        (r"<\|channel\|>commentary(?= to=functions\.)", r"<\|call\|>"),
        (r"(?=<function=)", r"(?<=</function>)"),
        (r"(?=<invoke name=)", r"(?<=</invoke>)"),
        (r"<code>", r"</code>"),
        (r"```(?:tool_code|tool_call)\n", r"```"),
    )
)
_FENCE = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)
_NAMED_XML = re.compile(
    r"""<(?:function=|invoke\s+name=)["']?(?P<name>[^"'>\s]+)["']?\s*>(?P<body>.*)""", re.DOTALL
)
_PARAMETER = re.compile(
    r"""<parameter(?:=|\s+name=)["']?(?P<key>[^"'>\s]+)["']?\s*>(?P<value>.*?)"""
    r"(?:</parameter>|(?=<parameter[= ])|(?=</function>|</invoke>)|\Z)",
    re.DOTALL,
)
_GLM_NAME = re.compile(r"\A\s*([\w.\-]+)\s*(?=<arg_key>|\Z)")
_GLM_PAIR = re.compile(
    r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL
)
# Mistral, DeepSeek, Kimi, gpt-oss: the name stands before the JSON of the arguments, among these.
_AROUND_NAME = re.compile(
    r"\[CALL_ID\]\w+|\[ARGS\]|<\|\w+\|>|<\uff5c[\w\u2581]+\uff5c>|```|\b(?:function|commentary|json)\b"
)
_NAME = re.compile(r"(?:to=)?(?:functions\.)?(?P<name>[\w.\-]+?)(?::\d+)?")
_LONGEST_HEAD = 400
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_TEXT_TYPES = frozenset({"string", "any"})


def read_calls(text: str, functions: Sequence[Function]) -> list[Call]:
    """Return the calls in an answer, in order; none if it holds no call.

    Args:
        functions: those offered; values that are written as bare text get their declared type.

    Raises:
        UnreadableCall: marks of a call stand around what is none.
    """
    for mark in _MARKS:
        bodies = [match["body"] for match in mark.finditer(text)]
        if bodies:
            return [call for body in bodies for call in _read_body(body, functions)]
    text = text.strip()
    fence = _FENCE.match(text)
    try:
        calls = _read_body(fence[1] if fence else text, functions)
    except UnreadableCall:
        return []
    # Without marks, {"name": "Ada"} is an answer, too.
    names = {function.name for function in functions}
    return calls if all(call.name in names for call in calls) else []


def _read_body(body: str, functions: Sequence[Function]) -> list[Call]:
    readers: tuple[Callable[[str, Sequence[Function]], list[Call]], ...] = (
        _from_xml,
        _from_name_and_json,
        _from_json,
        _from_python,
    )
    for read in readers:
        if calls := read(body, functions):
            return calls
    raise UnreadableCall(body)


def _from_xml(body: str, functions: Sequence[Function]) -> list[Call]:
    """Read `<function=f><parameter=x>1</parameter></function>`, and GLM's `f<arg_key>x</arg_key>...`."""
    if match := _NAMED_XML.search(body):
        pairs, rest = _PARAMETER.finditer(match["body"]), match["body"]
        if rest.lstrip().startswith("{"):  # Llama's <function=f>{"x": 1}</function>
            values, _ = _first_json(rest)
            return [Call(match["name"], values)] if isinstance(values, dict) else []
        name = match["name"]
    elif match := _GLM_NAME.match(body):
        name, pairs = match[1], _GLM_PAIR.finditer(body)
        if "<arg_key>" not in body and name not in {function.name for function in functions}:
            return []
    else:
        return []
    types = next((function.types for function in functions if function.name == name), {})
    arguments = {
        pair["key"].strip(): _typed(pair["value"], types.get(pair["key"].strip(), {}))
        for pair in pairs
    }
    return [Call(name, arguments)]


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """Return the value of a bare text: text if the parameter is one, else what it says as JSON or Python."""
    text = text.removeprefix("\n").removesuffix("\n")
    if schema.get("type", "string") in _TEXT_TYPES:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _from_name_and_json(body: str, functions: Sequence[Function]) -> list[Call]:
    head = body.partition("{")[0]
    words = _AROUND_NAME.sub(" ", head[:_LONGEST_HEAD]).split()
    match = _NAME.fullmatch(words[0]) if len(words) == 1 and len(head) <= _LONGEST_HEAD else None
    if not match:
        return []
    arguments, _ = _first_json(body[len(head) :])
    return [Call(match["name"], arguments)] if isinstance(arguments, dict) else []


def _from_json(body: str, functions: Sequence[Function]) -> list[Call]:
    """Read objects with a name and arguments, in a list or one after the other."""
    calls: list[Call] = []
    rest = body.strip()
    while rest:
        value, rest = _first_json(rest)
        items = value if isinstance(value, list) else [value]
        if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
            items = value["tool_calls"]
        read = [call for item in items if (call := _json_call(item))]
        if len(read) < len(items):
            return []
        calls += read
        rest = rest.lstrip(" \n\t\r,;")
    return calls


def _json_call(item: Any) -> Call | None:
    if not isinstance(item, dict):
        return None
    item = item["function"] if isinstance(item.get("function"), dict) else item
    name = item.get("name")
    arguments: Any = next((item[key] for key in _ARGUMENTS if item.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments, _ = _first_json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return Call(name.removeprefix("functions."), arguments)


def _first_json(text: str) -> tuple[Any, str]:
    """Return the JSON value with which a text begins, and what follows; None and "" if it begins otherwise."""
    text = text.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, ""
    return value, text[end:]


def _from_python(body: str, functions: Sequence[Function]) -> list[Call]:
    """Read `f(x=1)`, a list of such calls, or lines of them, also as `y = f(x=1)` and in `print(...)`."""
    try:
        tree = ast.parse(body.strip().strip("'"))
        nodes = [node for statement in tree.body for node in _call_nodes(statement)]
        return [Call(*_python_call(node)) for node in nodes]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return []


def _call_nodes(statement: ast.stmt) -> Iterator[ast.Call]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return
    value = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
    items = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    for item in items:
        if isinstance(item, ast.Call) and ast.unparse(item.func) == "print":
            calls = [part for part in item.args if isinstance(part, ast.Call)]
            yield from calls
        elif isinstance(item, ast.Call):
            yield item
        elif (
            not isinstance(statement, ast.Expr)
            or not isinstance(item, ast.Constant | ast.Name)
            or isinstance(value, ast.List | ast.Tuple)
        ):
            raise ValueError(f"no call: {ast.unparse(statement)}")


def _python_call(node: ast.Call) -> tuple[str, dict[str, Any]]:
    """Return name and arguments; arguments by position have no name, so they are none, as in BFCL."""
    name = ast.unparse(node.func)
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError(f"no name of a function: {name}")
    return name, {item.arg: _python_value(item.value) for item in node.keywords if item.arg}


def _python_value(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.List():
            return [_python_value(item) for item in node.elts]
        case ast.Tuple():
            return tuple(_python_value(item) for item in node.elts)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_python_value(key): _python_value(value) for key, value in pairs if key}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Call(keywords=[_, *_]):
            name, arguments = _python_call(node)
            return {name: arguments}
        case _:  # a name, a sum: the text
            return ast.unparse(node)
