"""Rows against the positions of the model that trains on them."""

from collections.abc import Mapping
from typing import Any

from dualign.checkpoints.context import length_of_longest_row, positions_of
from dualign.training.config import TrainingStage

_WAY_OUT = "stretch its context (docs/long-context.md), or lower data.max_tokens"


def longest_document(stage: Any, rows: Mapping[str, Any] | None) -> int:
    """Return the tokens of the longest document by ROWS; `max_tokens` where the rows aren't known, as of a stream.

    Positions restart with each document, so a packed row may be longer than the model's positions.
    """
    known = rows["by"] if rows and stage.data.stream is None else ()
    kept = [entry["max_tokens"] for entry in known if entry["kept"]]
    limit: int = stage.data.max_tokens
    return limit if not kept or stage.data.packing == "wrapped" else min(limit, max(kept))


def position_notes(
    stage: TrainingStage, model: Mapping[str, Any], rows: Mapping[str, Any] | None
) -> list[str]:
    """Return what is to say about positions before the first step, warnings as such.

    Args:
        model: config.json of the model that trains, as stretched.
        rows: ROWS of the data; None if they aren't known.
    """
    notes = stage.context.notes() if stage.context else []
    positions, longest = positions_of(model), longest_document(stage, rows)
    if positions is not None and longest > positions:
        says = (
            f"rows of up to {longest:,} tokens are longer than the model's {positions:,} positions"
        )
        notes.append(f"warning: {says}: {_WAY_OUT}")
    kind, original = length_of_longest_row(model) or ("", longest)
    if kind == "longrope" and longest > original:
        notes.append(
            f"warning: longrope rotates all documents of a batch by the longest: with rows of more than {original:,} "
            "tokens, shorter ones beside them are trained with the long factors"
        )
    return notes


def why_not_by_longest(stage: Any, model: Mapping[str, Any]) -> str | None:
    """Return why a stage can't train with the model's rotary type, if its frequencies are those of the longest row.

    transformers keeps dynamic frequencies from one batch to the next, until a row is short again.
    """
    kind, original = length_of_longest_row(model) or ("", 0)
    if kind != "dynamic" or stage.data.max_tokens <= original:
        return None
    return (
        "dynamic positions depend on the longest row so far, so the result would depend on where a run was cut: set "
        f"data.max_tokens to {original:,} at most, train with yarn or linear, or stretch by dynamic after training, "
        "in a merge stage"
    )
