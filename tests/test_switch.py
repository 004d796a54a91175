"""A switch is data: what each mode's prompt gets, and what a row that holds it says."""

from pathlib import Path
from typing import Any

import pytest

from dualign.cli.main import main
from dualign.errors import ConfigError
from dualign.switch import ENABLE_THINKING, Switch, read_switch, tried

TEXTS = Switch(
    think={"system": "detailed thinking on"}, no_think={"system": "detailed thinking off"}
)
VARIABLE = Switch(think={"thinking": True}, no_think={"thinking": False})


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (None, "detailed thinking on"),
        ("", "detailed thinking on"),
        ("Be brief.", "detailed thinking on\n\nBe brief."),
        ("detailed thinking on", "detailed thinking on"),
        ("Be brief. detailed thinking on.", "Be brief. detailed thinking on."),
        ("detailed thinking off\nBe brief.", "detailed thinking on\nBe brief."),
        ("detailed thinking only", "detailed thinking on\n\ndetailed thinking only"),
    ],
)
def test_the_text_stands_once_at_the_head_of_the_system_message(
    system: str | None, expected: str
) -> None:
    user = {"role": "user", "content": "Hi"}
    turns = [user] if system is None else [{"role": "system", "content": system}, user]
    assert TEXTS.with_system(turns, "think") == [{"role": "system", "content": expected}, user]


def test_a_row_says_its_mode_by_what_switches() -> None:
    assert VARIABLE.declared("", {"thinking": True}) == {"the row's thinking": "think"}
    assert VARIABLE.declared("", {"thinking": 1}) == {}  # nothing says what 1 means
    assert VARIABLE.declared("detailed thinking on", {}) == {}
    says = TEXTS.declared("You have detailed thinking off.", {})
    assert list(says.values()) == ["no_think"]
    assert TEXTS.declared("detailed thinking offline", {}) == {}


def test_a_level_of_a_row_stays_and_says_no_mode() -> None:
    effort = Switch(think={"reasoning_effort": "high"}, no_think={"reasoning_effort": "low"})
    assert effort.variables("think", {"reasoning_effort": "medium"}) == {}
    assert effort.variables("think", {"other": 1}) == {"reasoning_effort": "high"}
    assert effort.declared("", {"reasoning_effort": "low"}) == {}
    assert VARIABLE.variables("think", {"thinking": False}) == {"thinking": True}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"think": {"system": True}}, "think.system: expected text for the system message"),
        ({"think": {"messages": []}}, "every prompt has its own"),
        ({"think": {"my-flag": 1}}, "think.my-flag: not a name"),
        ({"think": {"a": 1}, "no_think": {"a": 1}}, "no_think: the same as think"),
        ({"thinking": {"a": 1}}, "unknown key (did you mean 'think'?)"),
        ({"think": "on"}, "think: expected keys with values"),
        ("on", "expected keys with values"),
    ],
)
def test_a_switch_that_cannot_switch_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_switch(value, "here")
    assert message in str(caught.value)


def test_the_command_line_takes_a_switch_as_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "model", "--task", "task.yaml", "--out", str(tmp_path / "out"), "--switch"]
    assert main([*command, "{think: {my-flag: 1}}"]) == 2
    assert "--switch: think.my-flag: not a name" in capsys.readouterr().err
    assert main([*command, "{think: [}"]) == 2
    assert "not a YAML value" in capsys.readouterr().err


def test_messages_say_what_was_tried() -> None:
    assert tried(VARIABLE) == "the switch {think: {thinking: true}, no_think: {thinking: false}}"
    assert "enable_thinking, thinking, reasoning_effort" in tried(None)
    assert "'detailed thinking on'" in tried(None) and read_switch(None, "here") is None
    assert read_switch(ENABLE_THINKING, "here") is ENABLE_THINKING
