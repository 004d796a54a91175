"""Ids of tokens in config.json and generation_config.json, moved to where the tokens are now."""

import re
from collections.abc import Callable, Mapping
from typing import Any

_ID = re.compile(r"_token_ids?$|_token_index$|^(begin_)?suppress_tokens$|^bad_words_ids$")

Move = Callable[[int], "int | str"]
"""an id before -> the id now, or the text of a token that isn't there any more"""


def move_ids(config: Mapping[str, Any], move: Move) -> dict[str, Any]:
    """The settings with each id moved, in nested settings too: `eos_token_id: [2, 5]`."""
    return {
        key: _moved(value, move)
        if _ID.search(key)
        else move_ids(value, move)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def _moved(value: Any, move: Move) -> Any:
    if isinstance(value, list):
        return [_moved(one, move) for one in value]
    # -1 and the like stand for no token.
    is_id = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return move(value) if is_id else value


def ids_in(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Every id that the settings name, by key."""
    found: dict[str, list[int]] = {}
    for key, value in config.items():
        if _ID.search(key):
            found[key] = _flat(value)
        elif isinstance(value, dict):
            found |= {f"{key}.{name}": ids for name, ids in ids_in(value).items()}
    return {key: ids for key, ids in found.items() if ids}


def lost_in(config: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose token isn't there any more, with the token."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if _ID.search(key):
            texts = [one for one in _leaves(value) if isinstance(one, str)]
            found |= {key: texts[0]} if texts else {}
        elif isinstance(value, dict):
            found |= {f"{key}.{name}": text for name, text in lost_in(value).items()}
    return found


def _flat(value: Any) -> list[int]:
    return [one for one in _leaves(value) if isinstance(one, int) and not isinstance(one, bool)]


def _leaves(value: Any) -> list[Any]:
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, list) else [value]
