"""The canonical form of a row: turns, traces and mode."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["think", "no_think"]
MODES: tuple[Mode, ...] = ("think", "no_think")
UNKNOWN_MODE = "unknown"
"""The mode of a row that was left out before its mode was known."""
PLAIN_TEXT = "text"
"""What raw text is counted under in place of a mode."""
Group = tuple[str, str]
"""(mode, source)"""
Role = Literal["system", "user", "assistant", "tool"]
RowType = Literal["conversation", "pair", "rated"]
"""What a stage's rows are: conversations, preference pairs, or answers that are good or bad."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn. `thinking` is the trace without the tags; `train`: an assistant turn is supervised.

    `tool_call_id` and `name` are the call that a tool's result answers, and its function.
    `cut`: the trace was cut short, so the model learns the answer alone.
    """

    role: Role
    content: str
    thinking: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    train: bool = True
    cut: bool = False

    @property
    def functions(self) -> list[Mapping[str, Any]]:
        """The function and the arguments of each call."""
        return [call["function"] for call in self.tool_calls]


@dataclass(frozen=True, kw_only=True, slots=True)
class RawText:
    """Raw text, which no template renders. `ends`: the document ends with it, and isn't cut there.

    `has_mode`: the row or its source says its mode.
    """

    ends: bool = True
    has_mode: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A row as the template gets it. `row` is its index in `source`, for messages.

    `template_kwargs` go to the template; `repairs` are the names of the repairs of the row. `raw`:
    its only message is raw text.
    """

    messages: tuple[Message, ...]
    mode: Mode
    source: str
    row: int
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    raw: RawText | None = None

    @property
    def counted_mode(self) -> str:
        """What the row is counted and logged under: its mode, or `text` for raw text without one."""
        return PLAIN_TEXT if self.raw is not None and not self.raw.has_mode else self.mode

    @property
    def place(self) -> str:
        """The row's source and number, for messages."""
        return f"{self.source}, row {self.row}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """One prompt with a better and a worse continuation, all three in one mode."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    mode: Mode
    source: str
    row: int
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RatedAnswer:
    """One prompt with one answer, and whether that is a good one (desirable), as KTO learns it."""

    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    desirable: bool
    mode: Mode
    source: str
    row: int
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
