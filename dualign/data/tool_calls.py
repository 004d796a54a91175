"""Rows with tools: what a row calls at its end, and whether a model's answer calls the same."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.data.conversation import Conversation, Message
from dualign.verifiers.call_trees import Call, Function
from dualign.verifiers.written_calls import UnreadableCall, read_calls


def uses_tools(conversation: Conversation) -> bool:
    """Return whether a row has tools, results or calls, also where a system text alone lists the tools."""
    return bool(conversation.tools) or any(
        message.role == "tool" or message.tool_calls for message in conversation.messages
    )


def final_calls(conversation: Conversation) -> tuple[Call, ...]:
    """Return the calls with which a row ends, also those in its text; none if it ends in an answer."""
    answer = conversation.messages[-1]
    if answer.tool_calls:
        return tuple(Call(item["name"], item["arguments"]) for item in answer.functions)
    if answer.role != "assistant" or not uses_tools(conversation):
        return ()
    return tuple(calls_in(answer.content, conversation) or ())


def calls_in(text: str, conversation: Conversation) -> list[Call] | None:
    """Return the calls in an answer to a row, in order; None if what it calls can't be read."""
    try:
        return read_calls(text, list(_functions(conversation)))
    except UnreadableCall:
        return None


def same_calls(calls: Sequence[Call], expected: Sequence[Call]) -> bool:
    """Return whether these are the expected calls in any order: the same names, arguments and values.

    Values are compared as JSON: 1 is 1.0 and isn't true; the order of keys doesn't count.
    """
    left = [_tree(call) for call in expected]
    for call in map(_tree, calls):
        if call not in left:
            return False
        left.remove(call)
    return not left


def calls_text(message: Message) -> str:
    """Return the calls of a message as text, for a model that is told what to call."""
    return "\n".join(f"{item['name']}({_arguments(item)})" for item in message.functions)


def _arguments(function: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in function["arguments"].items())


def _functions(conversation: Conversation) -> Iterator[Function]:
    """Yield the functions of a row's tools; those whose schema has another form have a name alone."""
    for tool in conversation.tools:
        schema = tool.get("function") or tool
        parameters = schema.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(properties, Mapping):
            properties = {
                key: item for key, item in properties.items() if isinstance(item, Mapping)
            }
        else:
            properties = {}
        yield Function(name=str(schema.get("name")), types=properties, required=())


def _tree(value: Any) -> Any:
    """Return a value in a form whose equality is that of JSON."""
    if isinstance(value, Call):
        return value.name, _tree(value.arguments)
    if isinstance(value, Mapping):
        return {str(key): _tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tree(item) for item in value]
    return ("bool", value) if isinstance(value, bool) else value
