"""The Modelfile that makes an Ollama model of an exported file.

Ollama's TEMPLATE is a Go template. Those of our chat formats are written by hand, beside this file;
for another format TEMPLATE is left out: Ollama since 0.20 then renders the file's own template, by
llama.cpp's engine, and an older one looks for the nearest it knows.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from dualign.export.chat_format import Dialect, dialect_of

LONGEST_CONTEXT = 8192
"""num_ctx at most: a whole 64k window would take gigabytes, and Ollama's default cuts thinking short"""
_DEFAULTED = ("default_think_instructions", "default_no_think_instructions")
_KNOWN = {
    "dualign": frozenset({"date", "custom_instructions"}),
    "smollm3": frozenset({"today", *_DEFAULTED}),
    "chatml": frozenset[str](),
}


def modelfile(
    file: str,
    *,
    chat_template: str,
    end_of_turn: str,
    context: int,
    generation: Mapping[str, Any],
) -> str:
    """The text of the Modelfile for `file`, a name beside it.

    `chat_template` is the checkpoint's; `generation` its generation_config.json.
    """
    template = go_template(chat_template)
    lines = [
        "# ollama create NAME -f Modelfile; then: ollama run NAME, ollama run NAME --think=false",
        f"FROM ./{file}",
    ]
    if template is None:
        lines.append(
            "# The chat template isn't one of dualign's: Ollama takes the one in the file."
        )
    else:
        lines.append(f'TEMPLATE """{template}"""')
    lines.append(f"PARAMETER stop {json.dumps(end_of_turn, ensure_ascii=False)}")
    lines.append(f"PARAMETER num_ctx {min(context, LONGEST_CONTEXT)}")
    if generation.get("do_sample"):
        lines += [
            f"PARAMETER {key} {generation[key]}"
            for key in ("temperature", "top_p", "top_k", "min_p")
            if generation.get(key) is not None
        ]
    return "\n".join(lines) + "\n"


def go_template(chat_template: str) -> str | None:
    """The Go template of a chat format of ours, with the recipe's values in it; None for another."""
    dialect = dialect_of(chat_template)
    if dialect is None or set(dialect.values) - _KNOWN[dialect.name]:
        return None
    text = (files("dualign.export") / "templates" / f"{dialect.name}.tmpl").read_text("utf-8")
    for marker, value in _markers(dialect).items():
        text = text.replace(f"@{marker}@", value)
    return text


def _markers(dialect: Dialect) -> dict[str, str]:
    values = dialect.values
    if dialect.name == "dualign":
        instructions, date = values.get("custom_instructions"), values.get("date")
        return {
            "custom_instructions": f"{_literal(instructions)}\n\n" if instructions else "",
            "date": f"Today: {_literal(date)}\n\n" if date else "",
        }
    if dialect.name == "smollm3":
        today = values.get("today")
        # Ollama has the day only as 2025-07-01.
        shown = {"today": _literal(today) if today else "{{ currentDate }}"}
        return shown | {name: _literal(values.get(name) or _default(name)) for name in _DEFAULTED}
    return {}


def _literal(text: str) -> str:
    """Text that Go prints as it is, whatever is in it."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def _default(name: str) -> str:
    from dualign.data.text.template import load_template

    found = re.search(rf'set {name} = (".*") -%}}', load_template("smollm3").text)
    assert found is not None
    return str(json.loads(found[1]))
