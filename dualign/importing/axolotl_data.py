"""axolotl's data sets -> our sources: where rows are, which columns have what, what is learned of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from dualign.config import Key
from dualign.importing.draft import Draft

_ASSISTANT = {"assistant", "gpt", "model"}
_TEXT_TYPES = ("completion", "pretrain")
_LISTS = ("datasets", "pretraining_dataset", "test_datasets")
_LOADERS = ("json", "csv", "parquet", "arrow", "text")
_FAR = ("s3://", "gs://", "gcs://", "adl://", "abfs://", "az://", "oci://", "https://", "http://")
_ROLES = ("system", "user", "assistant", "tool")
# Names that every row of ours may have, so `columns` needn't say them.
_KNOWN = {
    "messages": ("messages",),
    "tools": ("tools",),
    "thinking": ("reasoning_content", "thinking", "reasoning"),
    "train": ("train", "training", "trainable", "train_on"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "system": ("system",),
    "label": ("label",),
}
_FIELDS = {
    "field_messages": "messages",
    "field_tools": "tools",
    "field_thinking": "thinking",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "message_field_role": "role",
    "message_field_content": "content",
    "message_field_training": "train",
}
_TYPE_FIELDS = {
    "field_system": "system",
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_output": "completion",
    "field_label": "label",
}
_PROPERTIES = {
    "role": "role",
    "content": "content",
    "reasoning_content": "thinking",
    "thinking": "thinking",
    "tool_calls": "tool_calls",
}


def fill_sources(draft: Draft) -> None:
    """Write the sources of all lists of data sets, in order."""
    number = 0
    for name in _LISTS:
        value = draft.get(name)
        if isinstance(value, Mapping | str):
            value = [value if isinstance(value, Mapping) else {"path": value}]
            draft.document.value[name] = value
        for place, item in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(item, Mapping):
                draft.problems.append(f"{name}[{place}]: expected keys with values, found {item!r}")
                continue
            draft.sources[(name, place)] = number
            number += _fill_source(draft, (name, place), number)
    if not number and not draft.problems:
        draft.problems.append("datasets: expected a list of data sets, found none")


def is_text(draft: Draft, place: Key) -> bool:
    """Return whether a data set is raw text."""
    kind = draft.get(*place, "type")
    return place[0] == "pretraining_dataset" or base_type(kind) in _TEXT_TYPES


def base_type(kind: Any) -> str:
    """`alpaca:chat` -> `alpaca`; empty for keys or nothing."""
    return kind.partition(":")[0] if isinstance(kind, str) else ""


def _fill_source(draft: Draft, place: Key, number: int) -> int:
    """Write a data set as sources from `number` on; returns how many it became."""
    columns = dict(_columns(draft, place))
    files = _files(draft, place)
    for offset, path in enumerate(files):
        target = f"data.sources[{number + offset}]"
        draft.put(f"{target}.path", path)
        for key in ("name", "split", "revision"):
            if (value := draft.get(*place, key)) is not None:
                draft.put(f"{target}.{key}", value)
        if (shards := draft.number(*place, "shards")) and shards >= 1:
            draft.put(f"{target}.weight", 1 / shards)
        if place[0] == "test_datasets":
            draft.put(f"{target}.validation", True)
        if columns:
            draft.put(f"{target}.columns", dict(columns))
    target = f"data.sources[{number}]"
    if draft.get(*place, "shards"):
        draft.change((*place, "shards"), f"{target}.weight")
    _note_masks(draft, place)
    return len(files)


def _files(draft: Draft, place: Key) -> list[str]:
    """Return the paths of a data set's sources, and note its `path` and `data_files`."""
    path, listed = draft.get(*place, "path"), draft.get(*place, "data_files")
    target = f"data.sources[{draft.sources[place]}].path"
    names = [
        str(name) for name in (listed if isinstance(listed, list) else [listed] if listed else [])
    ]
    if not path and not names:
        draft.problems.append(f"{place[0]}[{place[1]}]: needs the key 'path'")
        return [""]
    if not names:
        _note_path(draft, (*place, "path"), str(path), target)
        return [draft.path(str(path)) or str(path)]
    if path in _LOADERS:
        draft.carry((*place, "path"), says="the format is read off the files")
    elif draft.find(str(path)):
        draft.carry((*place, "path"), target)
        names = [f"{path}/{name}" for name in names]
    else:
        draft.carry((*place, "path"), target)
        draft.refuse(
            (*place, "data_files"),
            "files of a data set of the Hub can't be chosen: all of it would be read; download these, "
            "and name them in path",
        )
        return [str(path)]
    for name in names:
        _note_path(draft, (*place, "data_files"), name, target)
    return [draft.path(name) or name for name in names]


def _note_path(draft: Draft, key: Key, path: str, target: str) -> None:
    if path.startswith(_FAR):
        draft.refuse(key, f"{path}: isn't read from there; download it, and name the file in path")
    elif draft.find(path) or key[-1] == "path":
        (draft.carry if key[-1] == "path" else draft.change)(key, target)
    if draft.find(path) is None and (
        path.endswith((".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt"))
        or path[:1] in "./~"
    ):
        draft.refuse(
            key,
            f"{path}: isn't there (looked in {draft.folder} and here); the recipe names it all the same, and loads when it is",
        )


def _columns(draft: Draft, place: Key) -> Iterator[tuple[str, Any]]:
    """Yield our columns of a data set, and note the keys that say them."""
    target = f"data.sources[{draft.sources[place]}].columns"
    columns = _type_columns(draft, place, target)
    for key, ours in _FIELDS.items():
        if (name := draft.get(*place, key)) is None:
            continue
        if name not in _KNOWN.get(ours, ()):
            columns[ours] = name
        note = draft.change if ours == "train" else draft.carry
        note((*place, key), target)
    _properties(draft, place, target, columns)
    _roles(draft, place, target, columns)
    if {"role", "content"} & set(columns) and "messages" not in columns:
        columns["messages"] = draft.get(*place, "field_messages") or "messages"
    system = draft.get("default_system_message")
    if system and not is_text(draft, place):
        columns.setdefault("system", {"value": system})
        draft.change("default_system_message", target)
    yield from columns.items()


def _type_columns(draft: Draft, place: Key, target: str) -> dict[str, Any]:
    kind, key = draft.get(*place, "type"), (*place, "type")
    if isinstance(kind, Mapping):
        return _own_type(draft, place, target)
    if is_text(draft, place):
        return _text(draft, place, target)
    row = draft.table.row(("datasets", 0, "type"))
    entry = row.values.get(base_type(kind).lower()) if row and kind else None
    if kind is None:
        draft.refuse(key, "says nothing: the shape is seen in the rows; token ids aren't read")
    elif entry is None:
        draft.refuse(
            key,
            f"{kind!r} is a form of axolotl's that isn't known here: the shape is seen in the rows, and "
            "columns says where a row has what (docs/data.md)",
        )
    else:
        draft.change(key, target if entry.get("columns") else "", says=entry["says"])
    return dict((entry or {}).get("columns", {}))


def _text(draft: Draft, place: Key, target: str) -> dict[str, Any]:
    """Return the column of raw text."""
    key = "text_column" if place[0] == "pretraining_dataset" else "field"
    name = draft.get(*place, key)
    if name is not None:
        draft.carry((*place, key), target)
    if draft.get(*place, "type") is not None:
        draft.change(
            (*place, "type"),
            target,
            says="raw text, all of it learned, with no template around it; it ends with the separator of "
            "documents, and documents never see each other (docs/data.md)",
        )
    is_file = str(draft.get(*place, "path")).endswith((".txt", ".md", ".pdf", ".docx"))
    return {} if is_file and name is None else {"text": name or "text"}


def _own_type(draft: Draft, place: Key, target: str) -> dict[str, Any]:
    """Return the columns of a type with fields of its own."""
    kind, key, columns = draft.get(*place, "type"), (*place, "type"), {}
    for name, ours in _TYPE_FIELDS.items():
        if value := kind.get(name):
            if value not in _KNOWN.get(ours, ()):
                columns[ours] = value
            draft.carry((*key, name), target)
    question = [kind[name] for name in ("field_instruction", "field_input") if kind.get(name)]
    if question:
        columns["prompt"] = (
            question[0] if len(question) == 1 else "\n\n".join(f"{{{name}}}" for name in question)
        )
        for name in ("field_instruction", "field_input"):
            if kind.get(name):
                draft.carry((*key, name), target)
    if kind.get("system_prompt"):
        columns.setdefault("system", {"value": kind["system_prompt"]})
        draft.change((*key, "system_prompt"), target)
    _name_the_others(draft, kind, columns)
    return columns


def _name_the_others(draft: Draft, kind: Mapping[str, Any], columns: dict[str, Any]) -> None:
    """Name the columns that axolotl takes by itself, since one name of ours alone has no shape."""
    if draft.kind == "sft":
        columns.setdefault("prompt", "instruction")
        columns.setdefault("completion", "output")
    elif kind.get("field_chosen") or kind.get("field_rejected"):
        for ours in ("prompt", "chosen", "rejected"):
            columns.setdefault(ours, kind.get(f"field_{ours}") or ours)


def _properties(draft: Draft, place: Key, target: str, columns: dict[str, Any]) -> None:
    mappings, key = (
        draft.get(*place, "message_property_mappings"),
        (*place, "message_property_mappings"),
    )
    if not isinstance(mappings, Mapping):
        return
    draft.carry(key, target)
    for theirs, name in mappings.items():
        ours = _PROPERTIES.get(theirs)
        if ours is None:
            draft.refuse(
                key, f"{theirs}: isn't a field of messages here; a template reads {name} itself"
            )
        elif name != ours and name not in _KNOWN.get(ours, ()):
            columns[ours] = name


def _roles(draft: Draft, place: Key, target: str, columns: dict[str, Any]) -> None:
    roles, key = draft.get(*place, "roles"), (*place, "roles")
    if not isinstance(roles, Mapping):
        return
    draft.carry(key, target)
    words = {}
    for role, names in roles.items():
        if role in _ROLES:
            words[role] = list(names) if isinstance(names, list) else [names]
        else:
            draft.refuse(
                key,
                f"{role}: isn't a role here ({', '.join(_ROLES)}); map its words to one of them",
            )
    if words:
        columns["role"] = {"from": columns.get("role", "role"), **words}


def _note_masks(draft: Draft, place: Key) -> None:
    """Note which turns are learned, where that isn't what dualign does by itself."""
    item = draft.get(*place)
    roles = item.get("roles_to_train", ["assistant"])
    flags = item.get("message_field_training") or item.get("message_field_training_detail")
    if "roles_to_train" in item:
        _note_roles(draft, (*place, "roles_to_train"), roles, bool(flags))
    for name in ("train_on_eos", "train_on_eot"):
        if item.get(name) in ("last", "none", "all"):
            draft.refuse(
                (*place, name),
                f"{item[name]}: each turn that is learned has the token that ends it, so that a model stops; "
                "tokens of other turns aren't learned",
            )


def _note_roles(draft: Draft, key: Key, roles: Any, flags: bool) -> None:
    if roles is None:
        draft.change(
            key,
            says="is empty: axolotl's documentation says that the last turn alone is learned, but its code (0.19) drops "
            "an empty key, and learns the assistant's turns, as here; data.supervise: last learns the last alone",
        )
    elif roles == [] and not flags:
        draft.refuse(
            key,
            "no role and no flag of turns (message_field_training): axolotl learns nothing of these rows; here the "
            "assistant's turns are learned",
        )
    elif roles == []:
        draft.change(
            key,
            says="the assistant's turns are learned, but for those that a flag leaves out; axolotl learns "
            "those alone that have one",
        )
    elif isinstance(roles, list) and roles and set(map(str, roles)) <= _ASSISTANT:
        draft.carry(key, says="as here")
    elif isinstance(roles, list) and roles:
        draft.refuse(
            key,
            f"{roles}: the assistant's turns alone are learned; data.supervise: all learns every token of "
            "every source",
        )
