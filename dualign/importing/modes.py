"""Rows of both modes need a template that switches modes: others end a run when its rows are read."""

from collections.abc import Iterator
from typing import Any

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import Mode
from dualign.data.faults import RowError
from dualign.importing.draft import Draft
from dualign.importing.local_rows import first_rows

_SWITCHES = ("think", "reasoning")
"""words in every template that switches modes: enable_thinking, thinking, reasoning_effort, /no_think"""


def require_switch(draft: Draft, data: DataConfig) -> None:
    """Take a template that switches modes where rows have both, and name the tool's in the third list."""
    template = str(draft.stage.get("template"))
    text = "" if template == "chatml" else draft.files.get(template)
    if data.supervise == "all" or text is None or any(word in text for word in _SWITCHES):
        return
    places = _places_of_modes(draft, data)
    if len(places) < 2:
        return
    says = (
        f"{template} asks both modes in one way, and rows are of both ({places['think']} is think, "
        f"{places['no_think']} is no_think): a run would be refused. The recipe has dualign, ChatML with a switch; "
        f"to keep {template}, train on rows of one mode"
    )
    keys = [key for key, note in draft.notes.items() if note.target == "template"]
    for key in keys:
        draft.refuse(key, says)
    draft.put("template", "dualign")
    draft.files.pop(template, None)


def _places_of_modes(draft: Draft, data: DataConfig) -> dict[Mode, str]:
    """Return where the first row of each mode is, in those files that are here."""
    places: dict[Mode, str] = {}
    for source in data.sources:
        for index, mode in _modes(draft, source):
            places.setdefault(mode, f"{source.path}, row {index}")
    return places


def _modes(draft: Draft, source: SourceConfig) -> Iterator[tuple[int, Mode]]:
    """Yield the modes of a file's first rows; a row that is refused has none."""
    rows = first_rows(draft.out / source.path)
    if not rows:
        return
    from dualign.data.rows.sources import to_conversation, to_pair, to_rated

    read: Any = to_conversation if draft.kind == "sft" else to_pair
    if draft.stage.get("train", {}).get("loss_type") == "kto":
        read = to_rated
    for index, row in enumerate(rows):
        try:
            yield index, read(row, source=source, index=index).mode
        except RowError:
            continue
