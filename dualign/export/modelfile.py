"""Modelfile: turns an exported file into an Ollama model.

Ollama's TEMPLATE is a Go template. Those of dualign's chat formats are written by hand, in
templates/. For other formats TEMPLATE is left out: Ollama from 0.20 on renders the file's own
template with llama.cpp's engine, and older versions choose the most similar one they know.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from dualign.export.chat_format import ChatFormat, detect_chat_format

_MAX_CONTEXT = 8192
"""Upper bound of num_ctx: a 64k window takes gigabytes, and Ollama's default cuts thinking."""
_INSTRUCTIONS = ("default_think_instructions", "default_no_think_instructions")
_KWARGS = {
    "dualign": frozenset({"date", "custom_instructions"}),
    "smollm3": frozenset({"today", *_INSTRUCTIONS}),
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
    """Return the Modelfile for `file`, the name of a file in the same folder.

    `chat_template` is the checkpoint's, `generation` its generation_config.json.
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
    lines.append(f"PARAMETER num_ctx {min(context, _MAX_CONTEXT)}")
    if generation.get("do_sample"):
        lines += [
            f"PARAMETER {key} {generation[key]}"
            for key in ("temperature", "top_p", "top_k", "min_p")
            if generation.get(key) is not None
        ]
    return "\n".join(lines) + "\n"


def go_template(chat_template: str) -> str | None:
    """Return the Go template of one of dualign's chat formats, with its values; else None."""
    chat_format = detect_chat_format(chat_template)
    if chat_format is None or set(chat_format.values) - _KWARGS[chat_format.name]:
        return None
    text = (files("dualign.export") / "templates" / f"{chat_format.name}.tmpl").read_text("utf-8")
    for marker, value in _markers(chat_format).items():
        text = text.replace(f"@{marker}@", value)
    return text


def _markers(chat_format: ChatFormat) -> dict[str, str]:
    values = chat_format.values
    if chat_format.name == "dualign":
        instructions, date = values.get("custom_instructions"), values.get("date")
        return {
            "custom_instructions": f"{_literal(instructions)}\n\n" if instructions else "",
            "date": f"Today: {_literal(date)}\n\n" if date else "",
        }
    if chat_format.name == "smollm3":
        today = values.get("today")
        # Ollama formats the day as 2025-07-01 only.
        shown = {"today": _literal(today) if today else "{{ currentDate }}"}
        return shown | {
            name: _literal(values.get(name) or _default(name)) for name in _INSTRUCTIONS
        }
    return {}


def _literal(text: str) -> str:
    """Quote text so that Go prints it unchanged."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def _default(name: str) -> str:
    from dualign.data.text.template import load_template

    match = re.search(rf'set {name} = (".*") -%}}', load_template("smollm3").text)
    assert match is not None
    return str(json.loads(match[1]))
