"""The content of a message: text, or parts of text, thought and calls, whoever wrote them.

A part whose text is under a key that nobody knows is a fault that names its keys: it never reads as
empty.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from dualign.data.faults import RowFault
from dualign.errors import excerpt, listing

_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning", "thought", "think", "reasoning_text", "reasoning_content")
_CALLS = ("tool_call", "tool_use", "function_call", "function")
_MEDIA = ("image", "img", "picture", "audio", "video")
MEDIA_KEYS = frozenset(
    {
        *(
            f"{kind}{end}"
            for kind in _MEDIA
            for end in ("", "s", "_url", "_urls", "_path", "_file")
        ),
        *(f"input_{kind}" for kind in _MEDIA),
        *("media", "pixel_values"),
    }
)
_NUMBER = re.compile(r"_?\d+$")  # image_1, image_2
_MEDIA_TYPES = MEDIA_KEYS | {"file", "input_file", "document"}
_VALUES = ("text", "value", "content")
_ABOUT = frozenset({"type", "cache_control", "annotations", "citations", "logprobs", "signature"})
"""Keys of a part beside its text."""


def text_of(content: Any) -> str:
    """Return the text of a content: a string, or parts without those of the trace and of calls."""
    if isinstance(content, str):
        return content
    return "".join(text for kind, text in _parts(content) if kind == "text")


def thought_in(content: Any) -> str | None:
    """Return the trace that a content has as parts; None without such parts.

    Raises:
        RowFault: text before a thought.
    """
    if content is None or isinstance(content, str):
        return None
    parts = [(kind, text) for kind, text in _parts(content) if kind != "call"]
    kinds = [kind for kind, text in parts if text.strip()]
    if ("text", "thought") in pairwise(kinds):
        raise RowFault("misplaced_think", f"text before the thought in {excerpt(content)}")
    return "".join(text for kind, text in parts if kind == "thought") or None


def calls_in(content: Any) -> list[Any]:
    """Return the calls that a content has as parts."""
    if content is None or isinstance(content, str):
        return []
    return [text for kind, text in _parts(content) if kind == "call"]


def check_media(item: Mapping[str, Any], what: str) -> None:
    """Raise RowFault if a row, a message or a part has an image, a sound or a video."""
    media = [key for key in item if _is_media_key(key) and _is_filled(item[key])]
    if media or _is_medium(item.get("type")):
        names = ", ".join(media) or f"type {item['type']}"
        raise RowFault(
            "multimodal",
            f"{what} has {names}: only text is trained on, and the text alone would be about "
            "something that the model doesn't see",
        )


@lru_cache(maxsize=1024)
def _is_media_key(key: str) -> bool:
    return _NUMBER.sub("", key) in MEDIA_KEYS


def _parts(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield (text, thought or call; its value) for each part."""
    if content is None:
        return
    if isinstance(content, str):
        yield "text", content
        return
    parts = [content] if isinstance(content, Mapping) and "type" in content else content
    if isinstance(parts, Mapping) or not isinstance(parts, Sequence):
        raise RowFault("bad_content", f"content {excerpt(content)}: expected text or parts")
    for part in parts:
        yield ("text", part) if isinstance(part, str) else _part(part)


def _part(part: Any) -> tuple[str, Any]:
    if not isinstance(part, Mapping):
        raise RowFault("bad_content", f"content part {excerpt(part)}: expected text")
    check_media(part, f"content part {excerpt(part)}")
    kind = part.get("type")
    if kind in _CALLS:
        return "call", next((part[key] for key in _VALUES if part.get(key)), part)
    if kind in _THOUGHTS or (kind is None and any(part.get(key) for key in _THOUGHTS)):
        return "thought", _value(part, (*_THOUGHTS, *_VALUES))
    if kind is None or kind in _TEXTS:
        return "text", _value(part, (*_VALUES, *_TEXTS))
    known = ", ".join((*_TEXTS, *_THOUGHTS, *_CALLS))
    raise RowFault(
        "bad_content",
        f"content part {excerpt(part)} of type {excerpt(kind)}: expected one of {known}",
    )


def _value(part: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the text of a part, from the only one of the keys that it fills."""
    filled = {key: part[key] for key in keys if part.get(key) not in (None, "", [])}
    unknown = [key for key in part if key not in (*keys, *_ABOUT) and _is_filled(part[key])]
    if len(filled) > 1 or (not filled and unknown):
        names = listing(part)
        raise RowFault(
            "bad_content",
            f"content part with the keys {names}: expected its text under one of {', '.join(keys)}",
        )
    (value,) = filled.values() or ("",)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise RowFault("bad_content", f"content part {excerpt(part)}: expected text")
    return text_of(value)


def _is_medium(kind: Any) -> bool:
    return isinstance(kind, str) and kind.lower().replace("-", "_") in _MEDIA_TYPES


def _is_filled(value: Any) -> bool:
    """Return whether a value holds anything: neither null, nor empty, nor only nulls."""
    if isinstance(value, str | bytes | Mapping):
        return bool(value)
    if isinstance(value, Sequence):
        return any(_is_filled(item) for item in value)
    return value is not None
