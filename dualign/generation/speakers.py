"""Who answers in a chat, piece by piece: a checkpoint in this process, or an endpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from dualign.data.conversation import Mode
from dualign.data.think_tags import CLOSE, OPEN
from dualign.errors import EvaluationError
from dualign.generation.answers import Prompt
from dualign.generation.config import Endpoint, endpoint_of
from dualign.generation.endpoint import EndpointResponder
from dualign.generation.generate import end_ids, generation_settings, tokenize
from dualign.generation.responders import CheckpointResponder
from dualign.generation.sampling import Sampling, sampler, uniforms
from dualign.generation.thinking import TraceMarks
from dualign.generation.wire import request_body, trace_of
from dualign.models.loading import open_model
from dualign.switch import Switch

Write = Callable[[str], None]


class Speaker(Protocol):
    """Something to talk to."""

    @property
    def marks(self) -> TraceMarks:
        """What it writes around a trace."""

    def prompt(self, messages: Sequence[Mapping[str, Any]], mode: Mode) -> Prompt:
        """Return the prompt of a conversation in a mode."""

    def refusal(self, prompt: Prompt, sampling: Sampling) -> str | None:
        """Return why a prompt can't be answered."""

    def speak(self, prompt: Prompt, sampling: Sampling, seed: int, write: Write) -> bool:
        """Write an answer in pieces; return whether the model ended it, not the limit or Ctrl-C."""


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

    def refusal(self, prompt: Prompt, sampling: Sampling) -> str | None:
        count = len(tokenize(self.tokenizer, [prompt.text])[0])
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is None or count + sampling.max_new_tokens <= room:
            return None
        return f"the conversation has {count} tokens and the model reads {room}: /reset first"

    @torch.inference_mode()
    def speak(self, prompt: Prompt, sampling: Sampling, seed: int, write: Write) -> bool:
        ids = tokenize(self.tokenizer, [prompt.text])[0]
        streamer = _Streamer(self.tokenizer, write, end_ids(self.model, self.tokenizer))
        settings = generation_settings(
            self.model, self.tokenizer, max_new_tokens=sampling.max_new_tokens
        )
        ids_BT = torch.tensor([ids], device=self.model.device)
        draws_BT = uniforms([seed], sampling.max_new_tokens).to(self.model.device)
        try:
            self.model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=settings,
                logits_processor=sampler([sampling], draws_BT, len(ids)),
                streamer=streamer,
            )
        except KeyboardInterrupt:
            streamer.end()
        return streamer.ended


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

    def refusal(self, prompt: Prompt, sampling: Sampling) -> str | None:
        """Nothing: the server knows how much it reads."""
        return None

    def speak(self, prompt: Prompt, sampling: Sampling, seed: int, write: Write) -> bool:
        """Write an answer; a trace that comes in a field of its own is put between think tags.

        Raises:
            EvaluationError: the server gave none, or cut it.
        """
        import openai

        responder = self._responder
        body = request_body(responder.endpoint, responder.name, prompt, sampling, seed)
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
