"""Thinking budgets: a trace is closed after so many tokens, and its answer follows.

Answers at several budgets are cut from one trace: what the model wrote up to the budget, and the
text that closes a trace, are a prompt that it goes on from. A greedy answer is the same as if the
trace had been closed while it was written.

    whole = AnswerRequest(...)                          # thinks as long as it likes
    early = budgeted(whole, Budget(tokens=128), answer_tokens=64)
    ask(responder, [whole, early], file)                # one trace, and one answer more if it is longer
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from dualign.generation.thinking import TraceMarks, prompt_opens_block, trace_marks, trace_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Where a trace is closed, and with which words."""

    tokens: int
    """of the trace; 0: it is closed before it begins"""
    closing: str | None = None
    """what is written there; None: what the template writes between a trace and its answer, which is
    what rows with `thinking_budget` train. What doesn't close the trace is followed by that
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedTrace:
    """A prompt with a trace that was closed."""

    token_ids: tuple[int, ...]
    kept: str = ""
    """what the model wrote of the trace"""
    closing: str


class TraceCutter:
    """What closes traces of one tokenizer's models."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def marks(self) -> TraceMarks:
        """What the model writes around a trace."""
        return trace_marks(self._tokenizer)

    @cached_property
    def _texts(self) -> tuple[str, str]:
        return trace_texts(self._tokenizer)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text, as it is."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def closing(self, budget: Budget) -> str:
        """Return the text that closes a trace."""
        words, own = budget.closing or "", self._texts[1]
        return words if self.marks.closing in words else words + own

    def close(self, prompt: str, written: Sequence[int], budget: Budget) -> "ClosedTrace | None":
        """Return the prompt that closes a trace at its budget; None if the model closed it within
        that, or opened none.

        Args:
            prompt: rendered text.
            written: the tokens with which a model went on.
        """
        if budget.tokens and self.trace(prompt, written)[1] <= budget.tokens:
            return None
        return self.cut(prompt, written, budget)

    def cut(self, prompt: str, written: Sequence[int], budget: Budget) -> "ClosedTrace":
        """Return the prompt that closes a trace that has as many tokens as its budget, or more."""
        closing = self.closing(budget)
        if budget.tokens == 0:
            is_open = prompt_opens_block(prompt, self.marks)
            closing = ("" if is_open else self._texts[0] or self.marks.head) + closing
            return ClosedTrace(token_ids=tuple(self.ids(prompt + closing)), closing=closing)
        kept = written[: self.trace(prompt, written)[0] + budget.tokens]
        return ClosedTrace(
            token_ids=(*self.ids(prompt), *kept, *self._following(closing)),
            # A token may end inside a character, which isn't shown.
            kept=self._decode(kept).rstrip("\ufffd"),
            closing=closing,
        )

    def is_spent(self, prompt: str, written: Sequence[int], budget: Budget) -> bool:
        """Return whether a trace that is being written has reached its budget, and is open."""
        if len(written) < budget.tokens:
            return False
        start, length = self.trace(prompt, written)
        return length >= budget.tokens and self.marks.closing not in self._decode(written[start:])

    def trace(self, prompt: str, written: Sequence[int]) -> tuple[int, int]:
        """Return where the trace starts in the tokens of an answer, and how many tokens it has.

        White space around it doesn't count. Without a trace it has none.
        """
        start = 0
        if not prompt_opens_block(prompt, self.marks):
            if not self._decode(written).lstrip().startswith(self.marks.head):
                return 0, 0
            start = _fewest(len(written), lambda n: self.marks.head in self._decode(written[:n]))
            start += start < len(written) and not self._decode(written[start : start + 1]).strip()
        rest = written[start:]
        trace = self._decode(rest).partition(self.marks.closing)[0].rstrip()
        return start, _fewest(len(rest), lambda n: self._decode(rest[:n]).startswith(trace))

    def _following(self, text: str) -> list[int]:
        """Return the tokens of a text that follows a word: some tokenizers begin texts with a space."""
        word, both = self.ids("a"), self.ids(f"a{text}")
        return both[len(word) :] if both[: len(word)] == word else self.ids(text)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _fewest(most: int, enough: Callable[[int], bool]) -> int:
    """Return the smallest number up to `most` that is enough, if more always is, too."""
    return bisect_left(range(most), True, key=enough)
