"""What a source's `columns` may say: our name -> where a row of the file has the value.

    prompt: Question                       a column
    messages: data.turns                   a path: keys and places in lists, joined by dots
    prompt: "{instruction}\n\n{context}"   a template of paths; a blank beside an empty one goes
    mode: {from: type, think: [cot], no_think: [direct]}   values, each with ours
    system: {value: Be brief.}             the same for every row

Light: a recipe is checked by it. rows/columns.py reads whole rows.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from string import Formatter
from typing import Any

from dualign.config import nearest
from dualign.data.conversation import MODES
from dualign.data.faults import Code, RowFault
from dualign.errors import excerpt

ROW_NAMES = (
    "messages",
    "prompt",
    "completion",
    "thinking",
    "history",
    "system",
    "tools",
    "mode",
    "chosen",
    "rejected",
    "label",
    "text",
)
MESSAGE_NAMES = ("role", "content", "thinking", "tool_calls", "train", "user", "assistant")
"""Names of a message's fields; user and assistant: both turns are in one object."""
_NAMES = tuple(dict.fromkeys((*ROW_NAMES, *MESSAGE_NAMES)))
_VALUES: Mapping[str, Mapping[str, Any]] = {
    "mode": {mode: mode for mode in MODES},
    "role": {role: role for role in ("system", "user", "assistant", "tool")},
    "label": {"good": True, "bad": False},
}
"""Names whose values can be mapped, with the words for them."""
_UNKNOWN_VALUE: Mapping[str, Code] = {
    "mode": "unknown_mode",
    "role": "unknown_role",
    "label": "bad_content",
}
_WORDS = {
    "prompt": ("question", "query", "instruction", "problem", "input"),
    "completion": ("response", "answer", "output", "solution"),
    "thinking": ("reasoning", "reasoning_content", "cot", "trace"),
    "messages": ("conversations", "conversation", "turns"),
    "role": ("from", "speaker"),
    "content": ("value",),
}
"""Words for our names, of people who know another tool."""
_APART = {
    "messages": ("prompt", "completion", "history", "text"),
    "text": ("prompt", "completion", "chosen", "rejected"),
    "thinking": ("chosen", "rejected"),
}
"""Names that can't be given together."""
_FORMS = 'a column, a template in quotes such as "{question}", {from: COLUMN} or {value: TEXT}'


def column_problems(columns: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the issues of a source's `columns`, as (key, message)."""
    issues = []
    for name, spec in columns.items():
        message = _unknown(name, spec) if name not in _NAMES else _spec_problem(name, spec)
        if message:
            issues.append((f"columns.{name}", message))
    for name, others in _APART.items():
        for other in others:
            if name in columns and other in columns:
                issues.append((f"columns.{other}", f"{name} is given too: {_reason(name)}"))
    return issues


def paths_of(spec: Any) -> tuple[str, ...]:
    """Return the paths that a value is read from."""
    if isinstance(spec, Mapping):
        return (spec["from"],) if "from" in spec else ()
    return tuple(path for _, path in _template(spec) if path is not None)


def read_value(name: str, spec: Any, row: Mapping[str, Any]) -> Any:
    """Return the value of our `name` in a row, or None if the row has none.

    Raises:
        RowFault: a value that the recipe doesn't map, or one that isn't text in a template.
    """
    if isinstance(spec, Mapping):
        if "value" in spec:
            return spec["value"]
        value = value_at(row, spec["from"])
        words = {word: listed for word, listed in spec.items() if word != "from"}
        return _translated(name, value, words, spec["from"]) if words else value
    template = _template(spec)
    return value_at(row, spec) if template == (("", spec),) else _filled(template, row)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return what is at a path, or None. A column whose name has dots comes before a path."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        value = _from_json(value) if isinstance(value, str) else value
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, Sequence) and not isinstance(value, str) and _is_place(key, value):
            value = value[int(key)]
        else:
            return None
    return value


def _is_place(key: str, value: Sequence[Any]) -> bool:
    return key.lstrip("-").isdigit() and -len(value) <= int(key) < len(value)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _translated(name: str, value: Any, words: Mapping[str, Any], path: str) -> Any:
    for word, listed in words.items():
        values = listed if isinstance(listed, list) else [listed]
        if any(_same(value, item) for item in values):
            return _VALUES[name][word]
    if value is None:
        return None
    known = "; ".join(f"{word}: {listed}" for word, listed in words.items())
    raise RowFault(
        _UNKNOWN_VALUE[name],
        f"{path} is {excerpt(value)}, which `columns` doesn't map to a {name} ({known})",
    )


def _same(value: Any, item: Any) -> bool:
    """Compare as text, since a CSV file has no other values: True and true, 1 and "1" are equal."""
    if str(value).lower() == str(item).lower():
        return True
    numbers = all(
        isinstance(side, int | float) and not isinstance(side, bool) for side in (value, item)
    )
    return numbers and bool(value == item)


@cache
def _template(text: str) -> tuple[tuple[str, str | None], ...]:
    """Split `a {b} c` into (("a ", "b"), (" c", None)); a bare path is (("", path),)."""
    if "{" not in text and "}" not in text:
        return (("", text),)
    return tuple((literal, path) for literal, path, _, _ in Formatter().parse(text))


def _filled(template: Sequence[tuple[str, str | None]], row: Mapping[str, Any]) -> str | None:
    """Fill a template; None if none of its paths has a value.

    "{a}\n\n{b}" without a b is "a": blanks only separate texts.
    """
    values = [None if path is None else value_at(row, path) for _, path in template]
    if all(value is None for value in values):
        return None
    text = ""
    for (literal, path), value in zip(template, values, strict=True):
        filled = _as_text(value, path)
        separates = path is not None and not literal.strip()
        text += ("" if separates and not (text and filled) else literal) + filled
    return text


def _as_text(value: Any, path: str | None) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise RowFault("bad_content", f"{path} is {excerpt(value)}: a template takes text")


def _unknown(name: str, spec: Any) -> str:
    if isinstance(spec, str) and spec in _NAMES:
        return f"no name of ours; our name comes first: {spec}: {name}"
    ours = next((ours for ours, words in _WORDS.items() if name in words), None)
    hint = f" (it is called {ours!r} here)" if ours else nearest(name, _NAMES)
    return f"no name of ours{hint}"


def _spec_problem(name: str, spec: Any) -> str | None:
    if isinstance(spec, Mapping):
        return _mapping_problem(name, spec)
    if not isinstance(spec, str) or not spec.strip():
        return f"expected {_FORMS}, found {spec!r}"
    try:
        fields = list(Formatter().parse(spec)) if {"{", "}"} & set(spec) else []
    except ValueError as error:
        return f"{error}; write {{{{ and }}}} for braces that are text"
    if any(path is not None and not path.strip() for _, path, _, _ in fields):
        return f"{spec!r}: expected a column's name in the braces"
    if any(format_spec or conversion for _, _, format_spec, conversion in fields):
        return f"{spec!r}: a template takes names alone; {{from: NAME}} reads one with : or !"
    if fields and all(path is None for _, path, _, _ in fields):
        return f"{spec!r} names no column; the same text for every row is {{value: ...}}"
    return None


def _mapping_problem(name: str, spec: Mapping[str, Any]) -> str | None:
    if set(spec) == {"value"}:
        return None
    if not isinstance(spec.get("from"), str):
        nothing = [key for key, value in spec.items() if value is None]
        quotes = f'; a template needs quotes: "{{{nothing[0]}}}"' if nothing else ""
        return f"expected {_FORMS}{quotes}"
    words = [word for word in spec if word != "from"]
    allowed = _VALUES.get(name, {})
    for word in words:
        if word not in allowed:
            known = (
                f"expected {', '.join(allowed)}" if allowed else "only mode, role, label have them"
            )
            return f"{word!r}: no value of {name}: {known}{nearest(word, list(allowed)) if allowed else ''}"
    empty = [word for word in words if spec[word] in (None, [], "")]
    return f"{empty[0]}: expected the values of {spec['from']}, found nothing" if empty else None


def _reason(name: str) -> str:
    return {
        "messages": "it is the whole conversation",
        "text": "it is the whole row",
        "thinking": 'expected a template such as chosen: "<think>{trace}</think>{answer}"',
    }[name]
