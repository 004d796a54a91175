"""Who answers in a chat, piece by piece: a checkpoint in this process, or an endpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from dualign.checkpoints.context import positions_of
from dualign.data.conversation import Mode
from dualign.data.think_tags import CLOSE, OPEN
from dualign.errors import EvaluationError
from dualign.generation.answers import Prompt
from dualign.generation.budgets import Budget, TraceCutter
from dualign.generation.config import Endpoint, endpoint_of
from dualign.generation.endpoint import EndpointResponder
from dualign.generation.generate import end_ids, generation_settings, tokenize
from dualign.generation.responders import CheckpointResponder
from dualign.generation.sampling import Sampler, Sampling, uniforms
from dualign.generation.thinking import TraceMarks
from dualign.generation.wire import request_body, trace_of, with_budget
from dualign.models.loading import open_model
from dualign.switch import Switch

Write = Callable[[str], None]
_ANSWER_SEED = 1_000_003
"""Added to the seed for draws after a trace that was closed."""


class Speaker(Protocol):
    """Something to talk to."""

    @property
    def marks(self) -> TraceMarks:
        """What it writes around a trace."""

    def prompt(self, messages: Sequence[Mapping[str, Any]], mode: Mode) -> Prompt:
        """Return the prompt of a conversation in a mode."""

    def refusal(self, prompt: Prompt, sampling: Sampling, budget: Budget | None) -> str | None:
        """Return why a prompt can't be answered, or a trace not be closed at a budget."""

    def speak(
        self, prompt: Prompt, sampling: Sampling, seed: int, write: Write, budget: Budget | None
    ) -> bool:
        """Write an answer in pieces; return whether the model ended it, not the limit or Ctrl-C.

        With a budget the limit is that of the answer after the trace.
        """


def open_speaker(model: str | Endpoint, *, dtype: str, switch: Switch | None) -> Speaker:
    """Open a checkpoint, whose weights are loaded, or an endpoint."""
    endpoint = endpoint_of(model)
    if endpoint is not None:
        return _EndpointSpeaker(endpoint, switch)
    assert isinstance(model, str), "an Endpoint is one"
    return _CheckpointSpeaker(model, dtype=dtype, switch=switch)


class _CheckpointSpeaker:
    def __init__(self, model: str, *, dtype: str, switch: Switch | None) -> None:
        subject = open_model(model, dtype=dtype)
        self.tokenizer, self.model = subject.tokenizer, subject.weights()
        self._responder = CheckpointResponder(
            subject, backend="transformers", dtype=dtype, batch_tokens=1, label=model
        )
        self._switch = self._responder.switch_of(switch)

    @cached_property
    def marks(self) -> TraceMarks:
        return self._responder.marks

    def prompt(self, messages: Sequence[Mapping[str, Any]], mode: Mode) -> Prompt:
        return self._responder.prompt(messages, mode, self._switch)

    def refusal(self, prompt: Prompt, sampling: Sampling, budget: Budget | None) -> str | None:
        count = len(tokenize(self.tokenizer, [prompt.text])[0])
        room = positions_of(self.model.config.to_dict())
        if room is None or count + _longest(sampling, budget).max_new_tokens <= room:
            return None
        return f"the conversation has {count} tokens and the model reads {room}: /reset first"

    def speak(
        self, prompt: Prompt, sampling: Sampling, seed: int, write: Write, budget: Budget | None
    ) -> bool:
        ids = tokenize(self.tokenizer, [prompt.text])[0]
        if budget is None:
            return self._write(ids, sampling, seed, write).ended
        ends = frozenset(end_ids(self.model, self.tokenizer))
        watch = _BudgetSpent(self._responder.cutter, prompt.text, len(ids), budget, ends)
        if budget.tokens:
            first = self._write(ids, _longest(sampling, budget), seed, write, watch)
            if not watch.spent:
                return first.ended
        closed = self._responder.cutter.cut(prompt.text, watch.written, budget)
        write(closed.closing)
        return self._write(list(closed.token_ids), sampling, seed + _ANSWER_SEED, write).ended

    @torch.inference_mode()
    def _write(
        self,
        ids: list[int],
        sampling: Sampling,
        seed: int,
        write: Write,
        watch: "_BudgetSpent | None" = None,
    ) -> "_Streamer":
        """Write what follows the tokens of a prompt."""
        streamer = _Streamer(self.tokenizer, write, end_ids(self.model, self.tokenizer))
        settings = generation_settings(
            self.model, self.tokenizer, max_new_tokens=sampling.max_new_tokens
        )
        ids_BT = torch.tensor([ids], device=self.model.device)
        draws = iter(uniforms(seed, sampling.max_new_tokens))
        try:
            self.model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=settings,
                logits_processor=LogitsProcessorList([Sampler([sampling], lambda: [next(draws)])]),
                stopping_criteria=StoppingCriteriaList([watch] if watch else []),
                streamer=streamer,
            )
        except KeyboardInterrupt:
            streamer.end()
        return streamer


class _BudgetSpent(StoppingCriteria):
    """Stop when a trace has as many tokens as its budget."""

    def __init__(
        self, cutter: TraceCutter, prompt: str, length: int, budget: Budget, ends: frozenset[int]
    ) -> None:
        self._cutter, self._prompt, self._length, self._budget = cutter, prompt, length, budget
        self._ends = ends
        self.written: list[int] = []
        """the trace, with what opened it"""
        self.spent = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: object) -> torch.Tensor:
        self.written = input_ids[0, self._length :].tolist()
        is_over = self.written[-1] in self._ends  # the model ended its turn inside the trace
        self.spent = not is_over and self._cutter.is_spent(self._prompt, self.written, self._budget)
        return torch.tensor([self.spent], device=input_ids.device)


def _longest(sampling: Sampling, budget: Budget | None) -> Sampling:
    """Return the sampling with room for a trace of its budget."""
    more = budget.tokens if budget else 0
    return replace(sampling, max_new_tokens=sampling.max_new_tokens + more)


class _Streamer(TextStreamer):
    """Pass text to a writer as it arrives, without the token that ends the turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Write, ends: list[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=False)
        self.write = write
        self.ends = frozenset(ends)
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt and value.flatten()[-1].item() in self.ends:
            self.ended = True
            return
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)


class _EndpointSpeaker:
    def __init__(self, endpoint: Endpoint, switch: Switch | None) -> None:
        self._responder = EndpointResponder(endpoint, label=endpoint.label)
        self._switch = self._responder.switch_of(switch)
        self.marks = self._responder.marks

    def prompt(self, messages: Sequence[Mapping[str, Any]], mode: Mode) -> Prompt:
        return self._responder.prompt(messages, mode, self._switch)

    def refusal(self, prompt: Prompt, sampling: Sampling, budget: Budget | None) -> str | None:
        """Refuse a budget that the server doesn't take; it knows how much it reads."""
        return self._responder.endpoint.budget_problem if budget else None

    def speak(
        self, prompt: Prompt, sampling: Sampling, seed: int, write: Write, budget: Budget | None
    ) -> bool:
        """Write an answer; a trace that comes in a field of its own is put between think tags.

        Raises:
            EvaluationError: the server gave none, or cut it.
        """
        import openai

        responder = self._responder
        if budget is not None and responder.endpoint.thinking_budget_field:
            prompt = with_budget(prompt, responder.endpoint.thinking_budget_field, budget.tokens)
        body = request_body(
            responder.endpoint, responder.name, prompt, _longest(sampling, budget), seed
        )
        pieces, reason = _Pieces(write), None
        try:
            with responder.connection.blocking_client() as client, suppress(KeyboardInterrupt):
                chunks = client.with_options(max_retries=2).post(
                    "/chat/completions",
                    cast_to=openai.types.chat.ChatCompletionChunk,
                    body={**body, "stream": True},
                    stream=True,
                    stream_cls=openai.Stream[openai.types.chat.ChatCompletionChunk],
                )
                for chunk in chunks:
                    for choice in chunk.choices:
                        pieces.put(choice.delta.to_dict())
                        reason = choice.finish_reason or reason
        except (openai.OpenAIError, ValueError) as error:
            raise EvaluationError(
                f"{responder.model}: {responder.connection.words(error)}"
            ) from None
        pieces.end()
        return reason is not None and reason != "length"


class _Pieces:
    """Pieces of traces and answers -> one text with think tags."""

    def __init__(self, write: Write) -> None:
        self._write, self._thinking = write, False

    def put(self, delta: Mapping[str, Any]) -> None:
        """Write what a piece holds."""
        if trace := trace_of(delta):
            self._write(trace if self._thinking else f"{OPEN}\n{trace}")
            self._thinking = True
        if content := str(delta.get("content") or ""):
            self.end()
            self._write(content)

    def end(self) -> None:
        """Close the trace, if it is open."""
        if self._thinking:
            self._write(f"\n{CLOSE}\n\n")
        self._thinking = False
