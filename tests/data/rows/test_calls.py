"""Calls, their ids and their arguments, from a row to the text that a template prints."""

import json
from dataclasses import fields
from typing import Any

import pytest

from dualign.data.config import SourceConfig
from dualign.data.conversation import Conversation, Message
from dualign.data.faults import RowError
from dualign.data.mix.dedup import digest
from dualign.data.rows.parser import dump_row, load_row
from dualign.data.rows.sources import to_conversation
from dualign.data.text.template import ChatTemplate
from tests.data.encode import render_row

SOURCE = SourceConfig(path="rows.jsonl")
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}CALLS<|end|>{% endfor %}"
    "{% if m.role != 'assistant' or not m.tool_calls %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def call(name: str = "look", arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def row(*calls: Any, results: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": list(calls)},
        *({"role": "tool", "content": "4", **result} for result in results),
    ]
    if results:
        turns.append({"role": "assistant", "content": "Seen."})
    return {"messages": turns}


def parsed(raw: dict[str, Any]) -> Conversation:
    return to_conversation(raw, source=SOURCE, index=0)


def arguments_of(raw: dict[str, Any]) -> Any:
    return parsed(raw).messages[1].functions[0]["arguments"]


def test_ids_and_names_of_calls_and_results_reach_the_template() -> None:
    text = CHAT.replace("CALLS", "{{ call.id }}={{ call.function.name }}").replace(
        "{{ m.content }}",
        "{{ m.content }}{% if m.tool_call_id %}[{{ m.tool_call_id }}/{{ m.name }}]{% endif %}",
    )
    made = parsed(
        row(
            call(arguments={}, id="a1"),
            results=({"tool_call_id": "a1", "name": "look"},),
        )
    )
    rendered = render_row(ChatTemplate(name="t", text=text), made, "assistant").text
    assert "a1=look" in rendered and "<|tool|>4[a1/look]<|end|>" in rendered


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"tool_call_id": "x"}, ("x", None)),
        ({"tool_call_id": None, "name": ""}, (None, None)),
        ({"call_id": 7, "tool_name": "look"}, ("7", "look")),
        ({"name": "look"}, (None, "look")),
    ],
)
def test_names_of_a_result(keys: dict[str, Any], expected: tuple[str | None, str | None]) -> None:
    result = parsed(row(call(), results=(keys,))).messages[2]
    assert (result.tool_call_id, result.name) == expected


def test_a_speaker_has_a_name_but_not_the_one_who_answers() -> None:
    turns = [
        {"role": "user", "content": "Hi", "name": "Ada"},
        {"role": "assistant", "content": "Yo", "name": "Bot"},
    ]
    assert [message.name for message in parsed({"messages": turns}).messages] == ["Ada", None]


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
@pytest.mark.parametrize("value", [{"x": 1}, '{"x": 1}'])
def test_arguments_of_a_call(key: str, value: Any) -> None:
    assert arguments_of(row({"name": "look", key: value})) == {"x": 1}
    assert arguments_of(row({"function": {"name": "look", key: value}})) == {"x": 1}


@pytest.mark.parametrize("value", ["", " ", None, {}, "{}"])
def test_a_call_without_arguments(value: Any) -> None:
    assert arguments_of(row(call(arguments=value))) == {}


@pytest.mark.parametrize("value", [[1], "[1]", [], 4, "4", True, "x", "null"])
def test_arguments_that_are_no_object_are_refused(value: Any) -> None:
    with pytest.raises(RowError, match="the arguments of look") as error:
        parsed(row(call(arguments=value)))
    assert error.value.code == "bad_tools"


def test_arguments_under_an_unknown_key_are_never_empty() -> None:
    with pytest.raises(RowError, match="expected them under arguments; the call has payload"):
        parsed(row({"id": "1", "name": "look", "payload": {"x": 1}}))


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("{{ call.function.arguments | tojson }}", '{"city": "Åre", "at": null}'),
        ("{{ '{' + call.function.arguments + '}' }}", '{{"city": "Åre", "at": null}}'),
        ("{{ call.function.arguments }}", '{"city": "Åre", "at": null}'),
        ("{{ 'x' ~ call.function.arguments }}", 'x{"city": "Åre", "at": null}'),
        (
            "{% for k, v in call.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}",
            "city=Åre;at=None;",
        ),
        (
            "{{ call.function.arguments if call.function.arguments is string "
            "else call.function.arguments | tojson }}",
            '{"city": "Åre", "at": null}',
        ),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_template_gets_the_form_of_arguments_that_it_prints(
    printed: str, expected: str, as_text: bool
) -> None:
    arguments: Any = {"city": "Åre", "at": None}
    if as_text:
        arguments = json.dumps(arguments)
    template = ChatTemplate(name="t", text=CHAT.replace("CALLS", "look " + printed))
    rendered = render_row(template, parsed(row(call(arguments=arguments))), "assistant")
    assert f"<|assistant|>look {expected}<|end|>" in rendered.text
    prompt = template.prompt(parsed(row(call(arguments=arguments))).messages, mode="no_think")
    assert f"look {expected}<|end|>" in prompt


def test_every_field_of_a_turn_survives_between_two_passes() -> None:
    """A field that is new must have a value here, and comes through."""
    values: dict[str, Any] = {
        "role": "tool",
        "content": "4",
        "thinking": "why",
        "tool_calls": (call(arguments={"x": 1}),),
        "tool_call_id": "a1",
        "name": "look",
        "train": False,
        "cut": True,
    }
    assert {entry.name for entry in fields(Message)} <= set(values)
    whole = Conversation(
        messages=(Message(**values),),
        mode="think",
        source="rows",
        row=5,
        tools=({"name": "look"},),
        template_kwargs={"date": "x"},
        repairs=("skip_turn",),
    )
    assert load_row(dump_row(whole), source=SOURCE, index=5) == whole


def test_duplicates_differ_in_ids_alone() -> None:
    def of(identity: str, **more: Any) -> bytes:
        result = {"tool_call_id": identity, "name": "look", **more}
        return digest(parsed(row(call(arguments={"x": 1}, id=identity), results=(result,))))

    assert of("a") == of("b") != of("a", name="peek")


@pytest.mark.parametrize(
    ("calls", "answered", "fits"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["b", "a"], True),
        (["a"], ["x"], False),
        (["a", "b"], ["a", "x"], False),
        ([None], ["x"], True),
        (["a"], [None], True),
    ],
)
def test_a_result_answers_a_call_of_the_turn_before(
    calls: list[str | None], answered: list[str | None], fits: bool
) -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Look."}]
    function = {"name": "look", "arguments": {}}
    turns.append(
        {"role": "assistant", "tool_calls": [{"id": i, "function": function} for i in calls]}
    )
    turns += [{"role": "tool", "content": "4", "tool_call_id": identity} for identity in answered]
    turns.append({"role": "assistant", "content": "Four."})
    source = SourceConfig(path="r")
    if fits:
        assert len(to_conversation({"messages": turns}, source=source, index=0).messages) > 3
        return
    with pytest.raises(RowError, match="answers the call 'x'; the turn before has a") as error:
        to_conversation({"messages": turns}, source=source, index=0)
    assert error.value.code == "tool_result_without_call"


def test_half_a_character_in_a_schema_is_refused() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    tool = {"type": "function", "function": {"name": "look", "description": "at \ud83d it"}}
    with pytest.raises(RowError, match=r"tools holds half a character .*the \? in 'at \? it'"):
        to_conversation(
            {"messages": turns, "tools": [tool]}, source=SourceConfig(path="r"), index=0
        )


def test_a_role_under_another_key_is_named() -> None:
    turns = [{"who": "customer", "content": "Hi"}, {"who": "agent", "content": "Yes"}]
    with pytest.raises(RowError, match=r"the keys who, content says no role.*role: KEY"):
        to_conversation({"messages": turns}, source=SourceConfig(path="r"), index=0)
