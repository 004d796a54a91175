"""LLaMA-Factory's `template: NAME` and `enable_thinking` -> a template, and the modes of rows."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dualign.config import nearest, read_yaml
from dualign.importing.draft import Draft

_AS_ITS_OWN = (
    "LLaMA-Factory writes this template's text by its own code; here the model's own chat template does, with "
    "its own default system text and calls, and every row is checked against it (`dualign inspect` shows them)"
)
_NO_TRACES = (
    "a row with a <think> block is a think row here, and text to LLaMA-Factory's template; where the model's own "
    "template switches modes, other rows get the prompt of no_think"
)
_EARLIER_BLOCKS = (
    "where it drops the think blocks of earlier answers, a conversation becomes a row for each answer, with the "
    "prompt that a user's turn has; LLaMA-Factory keeps one row, with a block in each answer"
)
_PIECES = (
    "the text of a row is tokenized as a whole here, as when the model is asked; LLaMA-Factory tokenizes its pieces "
    "one by one, so tokens at their edges (two line ends before a turn) may differ"
)
_MODES = (
    "the mode is each row's own here: a row with a trace is think, one without is no_think and its prompt says "
    "so; LLaMA-Factory trains every row as think, and teaches an empty think block to those without a trace"
)
_OFF = "traces are taken out of all rows (strip_thinking), and all are no_think"


def fill_template(draft: Draft) -> None:
    """Write the template of a stage, and what enable_thinking makes of the rows."""
    if draft.get("stage") == "pt":
        if draft.get("template"):
            draft.carry("template", says="raw text has no template")
        return
    name = draft.get("template")
    table = _table()
    if name is None:
        draft.assume("template", "template", "tokenizer", "isn't there: the model's own")
    elif name in table["forms"]:
        _fill_form(draft, str(name), table["forms"][name])
    elif name in table["without_turns"]:
        draft.refuse(
            "template", f"{name} has nothing between turns; the model's own is used instead"
        )
        draft.put("template", "tokenizer")
    elif name in (*table["reasoning"], *table["own"]):
        reasons = name in table["reasoning"]
        says = f"{_AS_ITS_OWN}; {_EARLIER_BLOCKS if reasons else _NO_TRACES}"
        draft.change("template", "template", "tokenizer", says)
    else:
        known = nearest(str(name), [*table["reasoning"], *table["own"], *table["forms"]])
        draft.refuse(
            "template", f"no template of LLaMA-Factory{known}; the model's own is used instead"
        )
        draft.put("template", "tokenizer")
    _fill_modes(draft, reasons=name in table["reasoning"])


def _fill_modes(draft: Draft, *, reasons: bool) -> None:
    """Write the modes of rows under a reasoning template; under another one there are none."""
    value, is_there = draft.get("enable_thinking"), "enable_thinking" in draft.document.value
    if not reasons:
        if is_there:
            draft.carry("enable_thinking", says="has no effect with a template that doesn't reason")
    elif value is False:
        for source in draft.stage["data"]["sources"]:
            source["mode"] = "no_think"
            source["on_fault"] = {"no_think_with_trace": "strip_thinking"}
        draft.change("enable_thinking", "data.sources", says=_OFF)
    elif is_there and value is None:
        draft.carry("enable_thinking", says="the mode is each row's own, as with null there")
    else:
        draft.change("enable_thinking", says=_MODES)


def _fill_form(draft: Draft, name: str, form: Mapping[str, Any]) -> None:
    if "template" in form:
        for source in draft.stage["data"]["sources"] if "system" in form else ():
            columns = source.setdefault("columns", {})
            if columns.get("system", {"value": ""}) == {"value": ""}:
                columns["system"] = {"value": form["system"]}
        draft.carry("template", "template", form["template"])
        return
    file = f"{name}.jinja"
    draft.files[file] = _jinja(name, form)
    says = f"written as {file}; calls and tools aren't in it; {_PIECES}"
    draft.change("template", "template", file, says)


def _jinja(name: str, form: Mapping[str, Any]) -> str:
    """Return a chat template of turns that stand one after the other."""
    lines = [f"{{#- {name}, as LLaMA-Factory writes it. -#}}"]
    if "system" in form:
        text = form["system_turn"].replace("{content}", form["system"])
        lines += ["{%- if messages[0].role != 'system' -%}", f"{{{{- {_expression(text)} -}}}}"]
        lines.append("{%- endif -%}")
    lines.append("{%- for message in messages -%}")
    for number, role in enumerate(("system", "user", "assistant")):
        lines.append(f"{{%- {'el' if number else ''}if message.role == '{role}' -%}}")
        lines.append(f"{{{{- {_expression(form[f'{role}_turn'])} -}}}}")
    lines += ["{%- else -%}", "{{- raise_exception('no turn of ' + message.role) -}}"]
    return "\n".join([*lines, "{%- endif -%}", "{%- endfor -%}"]) + "\n"


def _expression(turn: str) -> str:
    """`"USER: {content} ASSISTANT:"` -> `'USER: ' + message.content + ' ASSISTANT:'`."""
    text = turn.replace("{content}", "\0message.content\0").replace("{eos}", "\0eos_token\0")
    parts = text.split("\0")
    names = ("message.content", "eos_token")
    quoted = [part if part in names else repr(part) for part in parts if part]
    return " + ".join(quoted)


@cache
def _table() -> Mapping[str, Any]:
    file = files("dualign.importing") / "llama_factory_templates.yaml"
    document = read_yaml(Path(str(file)))
    document.raise_problems()
    table: Mapping[str, Any] = document.value
    return table
