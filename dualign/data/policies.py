"""Policies for inconsistent rows: stop, drop the row, or repair it by name.

Only repairs that need no guess are offered. An unclosed think block, for one, doesn't say where its
answer begins, and of two blocks neither is the right one: such a row is dropped or stops the run.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from dualign.config import nearest
from dualign.data.faults import CODES, Code

Repair = Literal[
    "as_no_think",
    "as_think",
    "drop_first_turns",
    "join_turns",
    "open_think",
    "read_trace",
    "skip_turn",
    "strip_thinking",
    "system_into_user",
    "trim_tokens",
]
_REPAIRS: tuple[Repair, ...] = get_args(Repair)
_ANY = "any"
"""In `on_fault`: every fault that isn't named there, except too_long."""

MENDS: Mapping[Code, tuple[Repair, ...]] = {
    "assistant_first": ("drop_first_turns",),
    "control_token": ("trim_tokens",),
    "empty_answer": ("skip_turn",),
    "foreign_trace": ("read_trace",),
    "mode_contradiction": ("as_think", "as_no_think"),
    "no_system_role": ("system_into_user",),
    "no_think_with_trace": ("strip_thinking", "as_think"),
    "pair_modes_differ": ("strip_thinking",),
    "same_role_twice": ("join_turns",),
    "think_without_trace": ("as_no_think", "skip_turn"),
    "trace_is_answer": ("strip_thinking",),
    "unopened_think": ("open_think",),
}
"""The repairs of each fault; every fault can be dropped or stop the run."""


def on_fault_problems(on_fault: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the issues of a source's `on_fault`, as (key, message)."""
    issues = []
    for code, action in on_fault.items():
        key = f"on_fault.{code}"
        if code != _ANY and code not in CODES:
            issues.append((key, f"no fault is called {code!r}{nearest(str(code), [*CODES, _ANY])}"))
        elif action not in (allowed := _allowed(code)):
            expected = f"expected one of {', '.join(allowed)}"
            issues.append((key, f"{expected}, found {action!r}{_elsewhere(action)}"))
    return issues


def repair_for(code: Code, on_fault: Mapping[str, str]) -> Repair | None:
    """Return the repair that a source names for a fault."""
    action: Any = on_fault.get(code)
    return action if action in _REPAIRS else None


def stops(code: Code, on_fault: Mapping[str, str], *, default: str) -> bool:
    """Return whether a fault that remains ends the run. After a failed repair `default` decides."""
    named = on_fault.get(code, on_fault.get(_ANY) if code != "too_long" else None)
    return (named if named in ("error", "drop") else default) == "error"


def _allowed(code: str) -> tuple[str, ...]:
    return (
        "error",
        "drop",
        *next((repairs for fault, repairs in MENDS.items() if fault == code), ()),
    )


def _elsewhere(action: object) -> str:
    """Name the faults that a repair mends, if it was given for another."""
    codes = [code for code, repairs in MENDS.items() if action in repairs]
    return f" (it mends {', '.join(codes)})" if codes else ""
