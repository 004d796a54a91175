"""Templates with one fault each, made from clean ones, and the code that must be found."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import trl


class Planted(NamedTuple):
    make: Callable[[], str]
    code: str


def shipped(name: str) -> str:
    return (files("dualign.data") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def of_another_family(name: str) -> str:
    """A template that comes with trl."""
    folder = Path(trl.__file__).parent / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def _changed(text: str, old: str, new: str) -> str:
    assert old in text, f"the template no longer has {old!r}"
    return text.replace(old, new)


def jinja_that_does_not_parse() -> str:
    return shipped("chatml") + "{% if %}"


def header_other_than_the_prompts() -> str:
    return shipped("chatml") + "{%- if add_generation_prompt %}{{- ' ' }}{%- endif %}"


def turns_never_closed() -> str:
    """Neither with a token of its own, nor with one of the next turn."""
    return shipped("chatml").replace("+ '<|im_end|>'", "").replace("<|im_start|>", "### ")


def switch_that_does_nothing() -> str:
    return shipped("chatml")


def old_thoughts_removed() -> str:
    return of_another_family("qwen3")


def persona_of_its_own() -> str:
    return of_another_family("qwen2_5")


def date_of_today() -> str:
    start = "{{- '<|im_start|>system\nIt is ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}"
    return start + shipped("chatml")


def trace_left_out() -> str:
    return _changed(
        shipped("chatml"),
        "{{- message.content + '<|im_end|>' }}\n        {%- endgeneration",
        "{{- message.content.split('</think>')[-1] + '<|im_end|>' }}\n        {%- endgeneration",
    )


def system_block_left_open() -> str:
    return shipped("smollm3")


def block_left_to_the_model() -> str:
    return shipped("smollm3-training")


def calls_left_out() -> str:
    return shipped("smollm3-training")


PLANTED = (
    Planted(jinja_that_does_not_parse, "template_unusable"),
    Planted(header_other_than_the_prompts, "prompt_not_prefix"),
    Planted(turns_never_closed, "template_unusable"),
    Planted(switch_that_does_nothing, "mode_switch_dead"),
    Planted(old_thoughts_removed, "history_rewritten"),
    Planted(persona_of_its_own, "default_system_prompt"),
    Planted(date_of_today, "date_leak"),
    Planted(trace_left_out, "thinking_lost"),
    Planted(system_block_left_open, "system_not_closed"),
    Planted(block_left_to_the_model, "think_not_prefilled"),
    Planted(calls_left_out, "tool_calls_lost"),
)
