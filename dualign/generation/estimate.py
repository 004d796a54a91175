"""What a stage will ask an endpoint, and what that costs, for `dualign plan`."""

from collections.abc import Iterable
from dataclasses import dataclass

from dualign.generation.config import Endpoint
from dualign.tasks.base import Problem

_BYTES_PER_TOKEN = (
    3.5  # of prompts; what the server's tokenizer makes of them is known when it answers
)
_TOKENS_PER_TURN = 8  # of a template around a turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Requests of a stage to one model."""

    requests: int = 0
    prompt_tokens: float = 0
    """a guess by length"""
    answer_tokens: int = 0
    """the limits, which answers may stay below"""

    @classmethod
    def of(cls, problems: Iterable[Problem], limit: int, samples: int = 1) -> "Demand":
        """Return the demand of asking each problem `samples` times, with a limit of tokens."""
        problems = list(problems)
        count = len(problems)
        sized = sum(problem.sizing.tokens for problem in problems if problem.sizing)
        turns = [turn for problem in problems if not problem.sizing for turn in problem.messages]
        bytes_ = sum(len(str(turn.get("content")).encode()) for turn in turns)
        tokens = sized + bytes_ / _BYTES_PER_TOKEN + _TOKENS_PER_TURN * (len(turns) + count)
        return cls(
            requests=count * samples,
            prompt_tokens=tokens * samples,
            answer_tokens=count * samples * limit,
        )

    def __add__(self, other: "Demand") -> "Demand":
        return Demand(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            answer_tokens=self.answer_tokens + other.answer_tokens,
        )

    def in_words(self, endpoint: Endpoint) -> str:
        """Return the demand, its cost, and whether a budget may end it."""
        total = round(self.prompt_tokens) + self.answer_tokens
        cost = endpoint.cost(self.prompt_tokens, self.answer_tokens)
        text = (
            f"{endpoint.label} at {endpoint.url}: {self.requests:,} requests, about "
            f"{round(self.prompt_tokens):,} tokens of prompts and at most {self.answer_tokens:,} of "
            f"answers; {'no prices given' if cost is None else f'at most {cost:.4f} by its prices'}"
        )
        if endpoint.max_total_tokens is not None and total > endpoint.max_total_tokens:
            text += f"; max_total_tokens ({endpoint.max_total_tokens:,}) may end it earlier"
        if endpoint.max_cost is not None and cost is not None and cost > endpoint.max_cost:
            text += f"; max_cost ({endpoint.max_cost:g}) may end it earlier"
        return text
