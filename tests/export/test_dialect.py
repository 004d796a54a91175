"""The template in the file: as the checkpoint's, but the flags of a system message come first."""

from typing import Any

import pytest

from dualign.data import sandbox
from dualign.data.template import load_template
from dualign.export.dialect import dialect_of, embedded
from dualign.training.models import with_defaults

TEXT = load_template("dualign").text
USER = {"role": "user", "content": "Hi"}


def render(text: str, system: str | None, **given: Any) -> str:
    messages = [USER] if system is None else [{"role": "system", "content": system}, USER]
    return sandbox.render(text, messages, {"add_generation_prompt": True, **given})


@pytest.mark.parametrize("name", ["dualign", "smollm3", "chatml"])
def test_our_formats_are_known_with_what_a_recipe_gave_them(name: str) -> None:
    text = with_defaults(load_template(name).text, {"date": "2025-07-01", "n": [1, None]})
    found = dialect_of(text)
    assert found is not None
    assert (found.name, found.values) == (name, {"date": "2025-07-01", "n": [1, None]})


def test_a_template_that_was_changed_is_foreign() -> None:
    assert dialect_of(TEXT + " ") is None
    assert embedded("{{ messages }}") == "{{ messages }}"


@pytest.mark.parametrize("given", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_without_a_flag_nothing_changes(system: str | None, given: dict[str, Any]) -> None:
    assert render(embedded(TEXT), system, **given) == render(TEXT, system, **given)


@pytest.mark.parametrize("flag", ["/think", "/no_think"])
def test_a_flag_beats_the_argument_that_llama_server_always_gives(flag: str) -> None:
    wanted = render(TEXT, f"Be brief. {flag}")
    for argument in (True, False):
        assert render(embedded(TEXT), f"Be brief. {flag}", enable_thinking=argument) == wanted
    other = flag == "/no_think"
    assert render(TEXT, f"Be brief. {flag}", enable_thinking=other) != wanted
