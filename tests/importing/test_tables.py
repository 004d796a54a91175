"""The tables of keys, row by row."""

from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from dualign.importing.draft import RECIPE_KEYS
from dualign.importing.tools import TOOLS, Tool
from dualign.stages import config_classes
from dualign.training.arguments import DPO_ARGUMENTS, SFT_ARGUMENTS

KINDS = ("sft", "preference")


def keys_of(cls: type, prefix: str = "") -> set[str]:
    """Our keys with their places, `data.sources[].path`, from the dataclass of a stage."""
    keys = set()
    hints = get_type_hints(cls)
    for spec in fields(cls):
        keys.add(f"{prefix}{spec.name}")
        for inner in _dataclasses(hints[spec.name]):
            is_list = "tuple" in str(hints[spec.name])
            keys |= keys_of(inner, f"{prefix}{spec.name}{'[]' if is_list else ''}.")
    return keys


def _dataclasses(expected: Any) -> list[type]:
    if is_dataclass(expected) and isinstance(expected, type):
        return [expected]
    return [inner for arg in get_args(expected) for inner in _dataclasses(arg)]


def is_key(target: str, kind: str, known: dict[str, set[str]]) -> bool:
    head, _, argument = target.partition("train.")
    if not head and argument:
        check = SFT_ARGUMENTS if kind == "sft" else DPO_ARGUMENTS
        return not any(
            "unknown" in text or "set by dualign" in text for _, text in check({argument: None})
        )
    return target in RECIPE_KEYS or target in known[kind]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_target_is_a_key_of_ours(tool: Tool) -> None:
    known = {kind: keys_of(config_classes()[kind]) for kind in KINDS}
    wrong = [
        row.key
        for row in tool.table.rows.values()
        if row.target and not any(is_key(row.target, kind, known) for kind in row.kinds or KINDS)
    ]
    assert not wrong


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_what_changes_or_is_refused_has_a_sentence(tool: Tool) -> None:
    for row in tool.table.rows.values():
        if row.action != "carried":
            assert len(row.says) > 20, row.key
        for value in row.values.values():
            if isinstance(value, dict):
                assert len(value.get("refused") or value["says"]) > 20, row.key
