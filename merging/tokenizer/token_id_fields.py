"""Token ids in config.json and generation_config.json, mapped to another vocabulary."""

import re
from collections.abc import Callable, Mapping
from typing import Any

_ID_KEY = re.compile(r"_token_ids?$|_token_index$|^(begin_)?suppress_tokens$|^bad_words_ids$")

IdMap = Callable[[int], "int | str"]
"""id before -> id now, or the text of a token that the vocabulary doesn't have any more"""


def map_ids(config: Mapping[str, Any], id_map: IdMap) -> dict[str, Any]:
    """Return the settings with each id mapped, in nested settings too: `eos_token_id: [2, 5]`."""
    return {
        key: _mapped(value, id_map)
        if _ID_KEY.search(key)
        else map_ids(value, id_map)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def _mapped(value: Any, id_map: IdMap) -> Any:
    if isinstance(value, list):
        return [_mapped(item, id_map) for item in value]
    # -1 and the like stand for no token.
    is_id = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return id_map(value) if is_id else value


def ids_in(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return every id in the settings, by key."""
    by_key = {
        key: [leaf for leaf in leaves if isinstance(leaf, int) and not isinstance(leaf, bool)]
        for key, leaves in _leaves_by_key(config)
    }
    return {key: ids for key, ids in by_key.items() if ids}


def unmapped_ids(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys whose token the vocabulary doesn't have any more, with the token."""
    by_key = {
        key: next((leaf for leaf in leaves if isinstance(leaf, str)), None)
        for key, leaves in _leaves_by_key(config)
    }
    return {key: text for key, text in by_key.items() if text is not None}


def _leaves_by_key(config: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    """Return the values of the keys that hold ids, as flat lists, with dotted keys."""
    leaves: list[tuple[str, list[Any]]] = []
    for key, value in config.items():
        if _ID_KEY.search(key):
            leaves.append((key, _flat(value)))
        elif isinstance(value, dict):
            leaves += [(f"{key}.{name}", nested) for name, nested in _leaves_by_key(value)]
    return leaves


def _flat(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, list) else [value]
