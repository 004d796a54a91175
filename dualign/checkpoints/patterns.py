"""The rank and scale of each layer of a LoRA adapter, as PEFT reads `rank_pattern` and `alpha_pattern`.

`config` is PEFT's, or a recipe's `lora:`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}


def is_named(path: str, names: str | Iterable[str]) -> bool:
    """Return whether PEFT's target_modules or exclude_modules name a module: by an expression for its
    whole path, or by names that end it.
    """
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """Return the first name or regular expression that fits the end of a module's path."""
    fits = (pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path))
    return next(fits, None)


def configured(config: Mapping[str, Any], key: str, path: str) -> Any:
    """Return a module's `r` or `lora_alpha`: of the first matching pattern, else the adapter's."""
    patterns = config.get(_PATTERNS[key]) or {}
    pattern = first_match(patterns, path)
    return config[key] if pattern is None else patterns[pattern]


def takes_from_base(start: object) -> bool:
    """Return whether an `init_lora_weights` starts an adapter as a part of the base's weights."""
    return isinstance(start, str) and start.startswith(("pissa", "olora"))


def published_rank(lora: Mapping[str, Any], path: str) -> int:
    """Return the rank that a stage's `lora:` adds to a layer: twice its own if its start is taken away again."""
    rank: int = configured(lora, "r", path)
    return 2 * rank if takes_from_base(lora.get("init_lora_weights")) else rank


def largest_rank(lora: Mapping[str, Any]) -> int:
    """Return the largest rank that a stage's `lora:` adds to a layer."""
    ranks = [lora["r"], *(lora.get("rank_pattern") or {}).values()]
    return int(max(ranks)) * (2 if takes_from_base(lora.get("init_lora_weights")) else 1)


def has_whole_tensors(config: Mapping[str, Any]) -> bool:
    """Return whether tensors of the base are trained as a whole beside the adapter."""
    return bool(config.get("modules_to_save")) or config.get("bias", "none") != "none"
