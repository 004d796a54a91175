"""Faults of a row. Dropped rows are counted by their code."""

from typing import Literal, get_args

from dualign.data.conversation import Mode
from dualign.errors import DataError

Code = Literal[
    "assistant_first",
    "bad_answer",
    "bad_content",
    "bad_label",
    "bad_tools",
    "boundary",
    "control_token",
    "double_think",
    "empty_answer",
    "empty_row",
    "empty_think_supervised",
    "empty_user",
    "flag_in_word",
    "foreign_trace",
    "identical_pair",
    "kwargs_ignored",
    "late_system",
    "lone_surrogate",
    "loss_weight",
    "message_lost",
    "misplaced_think",
    "mode_contradiction",
    "multimodal",
    "nested_think",
    "no_answer",
    "no_system_role",
    "no_text",
    "no_think_with_trace",
    "not_one_answer",
    "pair_modes_differ",
    "plain_text",
    "prompt_supervised",
    "same_role_twice",
    "template",
    "think_left_open",
    "think_without_trace",
    "thinking_doubled",
    "too_long",
    "tool_result_without_call",
    "tools_as_repr",
    "tools_lost",
    "trace_is_answer",
    "unclosed_think",
    "unknown_mode",
    "unknown_role",
    "unknown_shape",
    "unknown_tool",
    "unopened_think",
    "unreadable_document",
    "wrong_stage",
]
CODES: tuple[Code, ...] = get_args(Code)


class RowFault(Exception):
    """A fault of a row, raised where its source and place aren't known; rows/sources.py makes a
    RowError of it.
    """

    def __init__(self, code: Code, what: str, mode: Mode | None = None) -> None:
        super().__init__(what)
        self.code: Code = code
        self.mode = mode


class RowError(DataError):
    """An inconsistent row. `mode` is None if the fault was found before the mode was known."""

    def __init__(
        self, code: Code, what: str, *, source: str, row: int, mode: Mode | None = None
    ) -> None:
        super().__init__(f"{source}, row {row}: {what} [{code}]")
        self.code: Code = code
        self.what = what
        self.source = source
        self.row = row
        self.mode = mode

    def __reduce__(self) -> tuple[object, ...]:
        """Worker processes send errors back pickled, which needs the arguments and not the text."""
        return (_row_error, (self.code, self.what, self.source, self.row, self.mode))


def _row_error(code: Code, what: str, source: str, row: int, mode: Mode | None) -> RowError:
    return RowError(code, what, source=source, row=row, mode=mode)
