"""What goes over the wire to an OpenAI-compatible endpoint, and what comes back.

Servers give a trace as `reasoning_content` (vLLM, SGLang, llama.cpp, DeepSeek), as `reasoning`
(OpenRouter, Ollama, newer vLLM), or in think tags, and calls as `tool_calls`. All become one text
with tags, which is split and judged like the text of any other model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dualign.data.conversation import Mode
from dualign.data.text.trace_form import as_json
from dualign.data.think_tags import CLOSE, OPEN
from dualign.generation.answers import Generation, Prompt
from dualign.generation.config import Endpoint
from dualign.generation.sampling import Sampling
from dualign.switch import Switch

_ENDED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls"})
_CUT = frozenset({"length", "max_tokens"})
_OWN_FIELDS = frozenset({"reasoning_effort"})
"""Variables of a switch that are fields of the request; others are the template's."""


class UnusableReplyError(Exception):
    """A reply that holds no answer; the text names the reason in a word or two."""

    def __init__(self, reason: str, usage: Mapping[str, int] | None = None) -> None:
        super().__init__(reason)
        self.usage = usage
        """what the server counted for it all the same"""


def build_prompt(
    messages: Sequence[Mapping[str, Any]],
    mode: Mode,
    switch: Switch,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Prompt:
    """Return what a server is asked in a mode.

    Of the switch's entry, `system` goes to the head of the system message, `user` to the end of the
    last user turn, `body` and reasoning_effort into the request, the rest to the server's template.
    """
    entry = dict(switch.of(mode))
    turns = switch.with_system(_with_call_ids(messages), mode)
    entry.pop("system", None)
    if words := entry.pop("user", None):
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if last is not None:
            turns[last] = {**turns[last], "content": f"{turns[last]['content']} {words}"}
    fields: dict[str, Any] = dict(entry.pop("body", {}))
    fields |= {name: entry.pop(name) for name in _OWN_FIELDS & entry.keys()}
    if entry:
        fields["chat_template_kwargs"] = entry
    if tools:
        fields["tools"] = [dict(tool) for tool in tools]
    text = json.dumps({"messages": turns, **fields}, ensure_ascii=False, sort_keys=True)
    return Prompt(text=text, mode=mode, messages=tuple(turns), fields=fields)


def _with_call_ids(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose calls have an id each and their arguments as text, as the API has them.

    Rows often have neither; results follow their calls in order.
    """
    turns, waiting, count = [], list[str](), 0
    for message in messages:
        turn = dict(message)
        if calls := turn.get("tool_calls"):
            turn["tool_calls"] = [
                _sent_call(call, f"call_{count + number}") for number, call in enumerate(calls)
            ]
            count += len(calls)
            waiting = [call["id"] for call in turn["tool_calls"]]
        elif turn["role"] == "tool" and waiting:
            named = turn.setdefault("tool_call_id", waiting[0])
            waiting = [call_id for call_id in waiting if call_id != named]
        turns.append(turn)
    return turns


def _sent_call(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else as_json(arguments)
    return {"id": name, "type": "function", **call, "function": {**function, "arguments": text}}


def with_budget(prompt: Prompt, name: str, tokens: int) -> Prompt:
    """Return the prompt with a thinking budget in a field of the request, whose name may be dotted."""
    value: Any = tokens
    outer, *inner = name.split(".")
    for part in reversed(inner):
        value = {part: value}
    own = prompt.fields.get(outer)
    if isinstance(own, Mapping) and isinstance(value, Mapping):
        value = {**own, **value}
    return replace(prompt, fields={**prompt.fields, outer: value})


def request_body(
    endpoint: Endpoint, name: str, prompt: Prompt, sampling: Sampling, seed: int
) -> dict[str, Any]:
    """Return the JSON of a request; the endpoint's `body` is laid over it, and null takes a field out.

    What switches the mode stays: an answer counts for the mode in which it was asked.
    """
    body: dict[str, Any] = {
        "model": name,
        "messages": [dict(turn) for turn in prompt.messages],
        endpoint.limit_field: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        **prompt.fields,
    }
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if sampling.top_k is not None:  # vLLM's, SGLang's and llama.cpp's own; others refuse it
        body["top_k"] = sampling.top_k
    if sampling.temperature > 0:
        body["seed"] = seed % 2**31
    if endpoint.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    for option, value in endpoint.body.items():
        own = body.get(option)
        nested = isinstance(own, Mapping) and isinstance(value, Mapping)
        if nested and own is not None:
            body[option] = {**value, **own}
        elif option not in prompt.fields:
            body[option] = value
    return {key: value for key, value in body.items() if value is not None}


def read_reply(text: str, mode: Mode) -> Generation:
    """Read a reply.

    Raises:
        UnusableReplyError: it isn't JSON (garbage), holds no choice, or didn't end as an answer does.
    """
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableReplyError("garbage") from None
    if isinstance(reply, dict) and reply.get("error"):
        raise UnusableReplyError("error in the reply")
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        content, trace = _text(message.get("content")), trace_of(message)
        content = "\n".join(
            filter(None, [content, *map(_as_text, message.get("tool_calls") or ())])
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UnusableReplyError("garbage") from None
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in _ENDED | _CUT:
        words = f"finish_reason {str(reason)[:30]}"
        raise UnusableReplyError(words, _usage(reply.get("usage")))
    finished = reason in _ENDED
    return Generation(
        text=_tagged(trace, content, mode, finished=finished),
        finished=finished,
        usage=_usage(reply.get("usage")),
    )


@dataclass(slots=True)
class Pieces:
    """The pieces of a streamed answer, put together to the reply that it would have been at once."""

    trace: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    """by their index in the message"""
    reason: str | None = None
    usage: Any = None

    def put(self, chunk: Mapping[str, Any]) -> None:
        """Add a chunk of the stream."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            self.trace.append(trace_of(delta))
            self.content.append(delta.get("content") or "")
            for piece in delta.get("tool_calls") or ():
                call = self.calls.setdefault(piece.get("index", 0), {"name": "", "arguments": ""})
                function = piece.get("function") or {}
                for key in call:
                    call[key] += function.get(key) or ""
            self.reason = choice.get("finish_reason") or self.reason

    def reply(self) -> str:
        """Return the reply as JSON; without a reason to finish, the stream was cut."""
        message: dict[str, Any] = {
            "content": "".join(self.content),
            "reasoning_content": "".join(self.trace),
        }
        if self.calls:
            message["tool_calls"] = [{"function": call} for call in self.calls.values()]
        choice = {"message": message, "finish_reason": self.reason or "cut"}
        return json.dumps({"choices": [choice], "usage": self.usage})


def _tagged(trace: str, content: str, mode: Mode, *, finished: bool) -> str:
    """Return trace and content as one text with think tags; a trace that was cut has no closing tag."""
    if trace.strip():
        is_open = not finished and not content.strip()
        return f"{OPEN}\n{trace.strip()}" + ("" if is_open else f"\n{CLOSE}\n\n{content.lstrip()}")
    before, close, _ = content.partition(CLOSE)
    if mode == "think" and close and OPEN not in before:
        return f"{OPEN}\n{content.lstrip()}"  # the server's template opened the block
    return content


def trace_of(message: Mapping[str, Any]) -> str:
    """Return the trace of a message or of a piece of one; "" if it has none."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            return _whole(message[name])
    return ""


def _text(content: Any) -> str:
    """Return a message's content, also of one that comes in parts."""
    if isinstance(content, list):
        return _whole("".join(str(part.get("text", "")) for part in content))
    if content is not None and not isinstance(content, str):
        raise TypeError("content is no text")
    return _whole(content or "")


def _whole(text: str) -> str:
    """Return a text that can be written: a limit may cut a character into half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_text(call: Mapping[str, Any]) -> str:
    """Return a call as models write it that were trained on Hermes' form."""
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    text = arguments if isinstance(arguments, str) else as_json(arguments)
    body = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {text}}}'
    return f"<tool_call>\n{_whole(body)}\n</tool_call>"


def _usage(usage: Any) -> dict[str, int] | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("completion_tokens_details")
    counts = {
        "prompt": usage.get("prompt_tokens"),
        "completion": usage.get("completion_tokens"),
        "reasoning": details.get("reasoning_tokens") if isinstance(details, dict) else None,
    }
    known = {name: n for name, n in counts.items() if isinstance(n, int) and n >= 0}
    if not {"prompt", "completion"} <= known.keys():
        return None
    total = usage.get("total_tokens")
    if known.get("reasoning") and isinstance(
        total, int
    ):  # some servers count the trace there alone
        known["completion"] = max(known["completion"], total - known["prompt"])
    return known
