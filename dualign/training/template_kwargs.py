"""Which variables a recipe may give to a chat template: they become defaults of the saved template."""

import datetime
import math
from collections.abc import Iterator, Mapping
from keyword import iskeyword
from typing import Any

Issue = tuple[str, str]
# Set for every row by dualign, or by whoever renders the saved template.
_OWNED = {
    "messages": "the row's messages",
    "tools": "the row's tools",
    "documents": "no template of a training row has documents",
    "add_generation_prompt": "set for every turn",
    "continue_final_message": "set for every turn",
    "chat_template": "set template",
    "bos_token": "the tokenizer's",
    "eos_token": "the tokenizer's",
    "pad_token": "the tokenizer's",
    "unk_token": "the tokenizer's",
}
# Words and names of jinja and of transformers' renderer.
_RESERVED = frozenset(
    [
        "true",
        "false",
        "none",
        "True",
        "False",
        "None",
        "and",
        "or",
        "not",
        "is",
        "in",
        "if",
        "elif",
        "else",
        "endif",
        "for",
        "endfor",
        "set",
        "endset",
        "block",
        "macro",
        "call",
        "filter",
        "import",
        "from",
        "include",
        "extends",
        "with",
        "without",
        "context",
        "ignore",
        "missing",
        "recursive",
        "do",
        "loop",
        "break",
        "continue",
        "self",
        "super",
        "varargs",
        "kwargs",
        "caller",
        "namespace",
        "range",
        "dict",
        "lipsum",
        "cycler",
        "joiner",
        "raise_exception",
        "strftime_now",
        "tojson",
        "tokenize",
        "conversation",
        "conversations",
        "return_dict",
        "generation",
        "endgeneration",
    ]
)


def template_kwargs_issues(kwargs: Mapping[str, Any]) -> list[Issue]:
    """Return the names that jinja can't read, and the values that a saved template can't hold."""
    issues = []
    for name, value in kwargs.items():
        key = "template_kwargs"
        if name in _OWNED:
            issues.append((key, f"{name} can't be set: {_OWNED[name]}"))
        elif name in _RESERVED or iskeyword(name):
            issues.append((key, f"{name} is a word of jinja: give the variable another name"))
        elif not name.isidentifier() or not name.isascii():
            expected = "expected letters, digits and _, not a digit first"
            issues.append((key, f"{name!r} is no name of a variable: {expected}"))
        issues += [(key, f"{name}: {message}") for message in _unstorable(value)]
    return issues


def _unstorable(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                yield f"the key {name!r} isn't text: write it in quotes"
            yield from _unstorable(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _unstorable(item)
    elif isinstance(value, (datetime.date, datetime.datetime)):
        yield f'YAML reads a date, and a template takes text: write "{value}" in quotes'
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{value} is no number that a template can hold"
    elif not (value is None or isinstance(value, (str, int, float))):
        yield f"expected text, a number, true, false, a list or keys, found {type(value).__name__}"
    elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        yield "holds half of a character (a lone surrogate)"
