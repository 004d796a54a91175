"""Our chat formats are known by their text."""

import pytest

from dualign.data.text.template import load_template
from dualign.export.chat_format import detect_chat_format
from dualign.models.tokenizer import saved_template, with_defaults
from dualign.switch import Switch

TEXT = load_template("dualign").text


@pytest.mark.parametrize("name", ["dualign", "smollm3", "chatml"])
def test_our_formats_are_known_with_what_a_recipe_gave_them(name: str) -> None:
    values = {"date": "2025-07-01", "n": [1, None], "deep": {"a": True, "b": "\u00e9 \U0001f642"}}
    text = with_defaults(load_template(name).text, values)
    found = detect_chat_format(text)
    assert found is not None
    assert (found.name, found.values) == (name, values)


def test_a_format_with_a_switch_of_its_own_is_known() -> None:
    switch = Switch(think={"system": "/think"}, no_think={"system": "/no_think"})
    found = detect_chat_format(saved_template(TEXT, {"n": 1}, switch))
    assert found is not None and (found.name, found.values) == ("dualign", {"n": 1})


def test_a_template_that_was_changed_is_foreign() -> None:
    assert detect_chat_format(TEXT + " ") is None
