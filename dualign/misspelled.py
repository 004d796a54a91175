"""A recipe whose `stages`, `kind` or `recipe` is misspelled is read all the same, so that its other keys are checked."""

import dataclasses
from typing import Any

from dualign.config import Document, Key, nearest, nearest_key
from dualign.stages import config_classes


def restore_stages(document: Document) -> None:
    """Read a misspelt `stages`, so that what is in it is checked as well."""
    value = document.value
    lists = [key for key, item in value.items() if isinstance(item, list) and key != "stages"]
    if "kind" in value or "stages" in value or not (match := nearest_key("stages", lists)):
        return
    document.refuse((match,), "unknown key (did you mean 'stages'?)")
    value["stages"] = value.pop(match)
    for key, line in list(document.lines.items()):
        if key[:1] == (match,):
            document.lines["stages", *key[1:]] = line


def kind_of_stage(document: Document, keys: dict[str, Any], key: Key) -> str | None:
    """Return a stage's kind, and a guess if that is misspelt, so that its other keys are checked too."""
    classes = config_classes()
    kind, place = keys.get("kind"), "kind"
    if "kind" not in keys and (misspelled := nearest_key("kind", list(keys))):
        kind, place = keys.pop(misspelled), misspelled
        document.refuse((*key, place), "unknown key (did you mean 'kind'?)")
    if isinstance(kind, str) and kind in classes:
        keys["kind"] = kind
        return kind
    if kind is None:
        document.refuse(key, f"needs the key 'kind': one of {', '.join(classes)}")
    else:
        expected = f"expected one of {', '.join(classes)}, found {kind!r}"
        document.refuse((*key, place), f"{expected}{nearest(str(kind), list(classes))}")
    fields = {
        name: {field.name for field in dataclasses.fields(cls)} for name, cls in classes.items()
    }
    likely = nearest_key(str(kind), list(classes)) if kind else None
    guess = likely or max(fields, key=lambda name: len(fields[name] & set(keys)))
    if likely or len(fields[guess] & set(keys)) > 1:
        keys["kind"] = guess
        return guess
    if misspelled := nearest_key("recipe", list(keys)):
        document.refuse((*key, misspelled), "unknown key (did you mean 'recipe'?)")
    return None
