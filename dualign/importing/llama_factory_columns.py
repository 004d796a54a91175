"""A set's `columns` and `tags` in dataset_info.json -> the `columns` of a source.

LLaMA-Factory reads the columns that an entry names, and by their usual names where it names none.
A column of the file that it leaves out, but that would be read here, is emptied.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.config import Key
from dualign.data.conversation import Role
from dualign.importing.draft import Draft
from dualign.importing.local_rows import first_rows

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")
_ROLES: Mapping[str, Role] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "system_tag": "system",
}
_KNOWN: Mapping[Role, Sequence[str]] = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot"),
    "tool": ("tool", "observation", "function", "tool_response", "ipython"),
    "system": ("system", "developer"),
}
"""Names of speakers that are read without a mapping (dualign/data/rows/messages.py)."""
_CALLS = ("function_call", "tool_call")
_SIDE = ("system", "tools", "history")
"""Columns that are read here under their own names."""


def columns_of(
    draft: Draft, entry: Mapping[str, Any], place: Key, file: Path | None
) -> dict[str, Any]:
    """Return the `columns` of a source; `file` is where its rows are, if that is here."""
    named = entry.get("columns")
    theirs: dict[str, Any] = dict(named) if isinstance(named, Mapping) else {}
    if draft.get("stage") == "pt":
        return {"text": _column(theirs.get("prompt") or ("instruction" if named is None else ""))}
    if entry.get("formatting", "alpaca") in ("sharegpt", "openai"):
        columns = _of_messages(draft, entry, theirs, place)
    else:
        columns = _of_alpaca(_ALPACA | {} if named is None else theirs, entry)
    columns |= {
        ours: _column(theirs[key])
        for key, ours in (("system", "system"), ("tools", "tools"), ("kto_tag", "label"))
        if theirs.get(key) and (key != "kto_tag" or draft.get("stage") == "kto")
    }
    # A column of system texts stays named: default_system would else take its place.
    own = {name: name for name in (*_SIDE, "label") if name != "system"}
    columns = {name: spec for name, spec in columns.items() if own.get(name) != spec}
    kept = {theirs.get(name) for name in _SIDE}
    first = next(iter(first_rows(file)), {})
    columns |= {
        name: {"value": ""}
        for name in _SIDE
        if name in first and name not in kept and name not in columns
    }
    return columns


def _of_alpaca(theirs: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a question and its answer, or its answers.

    The question is `prompt\\nquery` there; the shape that is read without columns has an empty line.
    """
    prompt, query = theirs.get("prompt"), theirs.get("query")
    question = f"{{{prompt}}}\n{{{query}}}" if prompt and query else _column(prompt or query)
    columns: dict[str, Any] = {"prompt": question}
    answers = ("chosen", "rejected") if entry.get("ranking") else ("response",)
    for key in answers:
        if theirs.get(key):
            columns["completion" if key == "response" else key] = _column(theirs[key])
    if theirs.get("history"):
        columns["history"] = _column(theirs["history"])
    return columns


def _of_messages(
    draft: Draft, entry: Mapping[str, Any], theirs: Mapping[str, Any], place: Key
) -> dict[str, Any]:
    """Return the columns of a conversation; none where its names are read as they are."""
    tags = entry.get("tags")
    # A tag that an entry with tags doesn't name is none there.
    named: Mapping[str, Any] = dict(tags) if isinstance(tags, Mapping) else _TAGS
    columns: dict[str, Any] = {}
    messages = theirs.get("messages") or "conversations"
    if messages not in ("conversations", "messages"):
        columns["messages"] = _column(messages)
    role, content = named.get("role_tag") or "from", named.get("content_tag") or "value"
    speakers = {ours: str(named[tag]) for tag, ours in _ROLES.items() if named.get(tag)}
    renamed = [name for name, word in speakers.items() if word.lower() not in _KNOWN[name]]
    if renamed:
        columns["role"] = {"from": role, **{name: [word] for name, word in speakers.items()}}
    elif role not in _ROLE_KEYS:
        columns["role"] = _column(role)
    if content not in _CONTENT_KEYS:
        columns["content"] = _column(content)
    _note_calls(draft, named, place, bool(renamed))
    for key in ("chosen", "rejected"):
        if entry.get("ranking") and theirs.get(key, key) != key:
            columns[key] = _column(theirs[key])
    return columns


def _note_calls(draft: Draft, named: Mapping[str, Any], place: Key, renamed: bool) -> None:
    """Name a tag of calls that can't be mapped: its turns stop a run."""
    tag = str(named.get("function_tag") or "")
    if tag.lower() in _KNOWN["assistant"]:
        return  # calls are a field of the assistant's message, as OpenAI has it
    if tag and (renamed or tag.lower() not in _CALLS) and (*place, "tags") in _places(draft):
        draft.refuse(
            (*place, "tags", "function_tag"),
            f"turns of {tag} are calls, and a mapping of roles has none: rename all roles in the file "
            "(user, assistant, tool, function_call), and remove the mapping",
        )


def _places(draft: Draft) -> set[Key]:
    """Return the keys of the file, with those above them."""
    return {key[:length] for key in draft.leaves() for length in range(1, len(key) + 1)}


def _column(name: Any) -> Any:
    """Return a column as `columns` takes it: a name with braces would be a template."""
    text = str(name)
    return {"from": text} if set(text) & set("{}") else text
