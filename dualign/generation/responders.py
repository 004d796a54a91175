"""Who answers: checkpoints by transformers or vLLM in this process, and endpoints."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from dualign.data.conversation import Mode
from dualign.data.rows.text_rules import text_rules
from dualign.data.text.template import load_template
from dualign.errors import EvaluationError, TemplateError
from dualign.generation.answers import Answer, AnswerRequest, Generation, Prompt, Responder
from dualign.generation.budgets import Budget, TraceCutter
from dualign.generation.config import Backend, Endpoint, endpoint_of
from dualign.generation.generate import generate_batches
from dualign.generation.likelihoods import Likelihood, LikelihoodRequest, likelihoods
from dualign.generation.samples import AnswerRecord
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import Reply, TraceMarks, closed_trace
from dualign.models import prompts
from dualign.models.loading import EvalModel, open_model
from dualign.models.source import resolve_model
from dualign.switch import Switch


class CheckpointResponder:
    """A checkpoint, or a live model, that answers in this process."""

    without_modes = False

    def __init__(
        self, subject: EvalModel, *, backend: Backend, dtype: str, batch_tokens: int, label: str
    ) -> None:
        self.subject = subject
        self.model, self.identity = subject.model, subject.identity
        self._backend, self._dtype, self._batch_tokens = backend, dtype, batch_tokens
        self._label = label

    @cached_property
    def cutter(self) -> TraceCutter:
        """What closes its traces."""
        return TraceCutter(self.subject.tokenizer)

    @property
    def marks(self) -> TraceMarks:
        return self.cutter.marks

    def switch_of(self, named: Switch | None) -> Switch | None:
        return prompts.switch_of(self.subject.tokenizer, named)

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        mode: Mode,
        switch: Switch | None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        tokenizer = self.subject.tokenizer
        turns, _ = prompts.arguments(messages, mode, switch)
        text = prompts.prompt(tokenizer, messages, mode, switch, tools=tools)
        return Prompt(text=text, mode=mode, messages=tuple(turns))

    def generate(
        self, prompts: Sequence[Prompt], samplings: Sequence[Sampling], seeds: Sequence[int]
    ) -> Iterator[dict[int, Generation]]:
        """Yield generations batch by batch. The weights are loaded here, if there are prompts."""
        texts = [prompt.text + prompt.begun for prompt in prompts]
        token_ids = [prompt.token_ids for prompt in prompts]
        if self._backend == "transformers":
            batches = partial(
                generate_batches,
                self.subject.weights(),
                self.subject.tokenizer,
                batch_tokens=self._batch_tokens,
                label=self._label,
                token_ids=token_ids,
            )
            yield from batches(texts, samplings, seeds)
            return
        from dualign.generation.vllm import vllm_batches

        start = resolve_model(self.model)
        adapter = str(start.adapter) if start.adapter else None
        generate = vllm_batches(
            start.base, adapter, self.subject.tokenizer, dtype=self._dtype, label=self._label
        )
        yield from generate(texts, samplings, seeds, token_ids)

    def closed(self, request: AnswerRequest, trace: AnswerRecord) -> AnswerRequest | None:
        assert request.budget is not None, "a request with a budget"
        written = trace.token_ids or self.cutter.ids(trace.generated)
        closed = self.cutter.close(request.prompt.text, written, request.budget)
        if closed is None:
            return None
        prompt = replace(
            request.prompt, token_ids=closed.token_ids, begun=closed.kept + closed.closing
        )
        return replace(request, prompt=prompt)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        added = self.subject.tokenizer.added_tokens_decoder.values()
        return tuple(token.content for token in added if token.special)

    def likelihoods(
        self, requests: Sequence[LikelihoodRequest]
    ) -> Iterator[dict[int, tuple[Likelihood, ...]]]:
        """Yield likelihoods batch by batch, by transformers.

        Raises:
            EvaluationError: the backend is another, which would hold the weights a second time.
        """
        if self._backend != "transformers":
            raise EvaluationError(
                f"{self.model}: log-probabilities come from transformers, found backend {self._backend}; "
                "put tasks that score texts in a stage with backend: transformers"
            )
        yield from likelihoods(
            self.subject.weights(),
            self.subject.tokenizer,
            requests,
            batch_tokens=self._batch_tokens,
            label=self._label,
        )

    def following(self, answer: Answer) -> str:
        closing = self.cutter.closing(Budget(tokens=0))
        return closed_trace(answer.request.prompt.text, answer.generated, self.marks, closing)

    def tokens(self, reply: Reply, record: AnswerRecord) -> tuple[int, int]:
        return self._count(reply.thinking or ""), self._count(reply.answer)

    def _count(self, text: str) -> int:
        if not text:
            return 0
        return len(self.subject.tokenizer(text, add_special_tokens=False)["input_ids"])

    def account(self, records: Sequence[AnswerRecord]) -> None:
        """Nothing: what this machine samples has no price."""

    def record(self) -> dict[str, Any] | None:
        return None


def control_of(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return what finds a tokenizer's control tokens in a text; None where they can't be told."""
    try:
        return text_rules(tokenizer, load_template("tokenizer", tokenizer=tokenizer)).control
    except TemplateError:
        return None


def open_responder(
    model: str | Endpoint, *, backend: Backend, dtype: str, batch_tokens: int, label: str
) -> Responder:
    """Open a model that answers; its weights are loaded, or its server asked, when it first answers.

    `backend`, `dtype` and `batch_tokens` are of a checkpoint in this process.

    Args:
        label: what the progress bar is called.

    Raises:
        CheckpointError: no such model.
        EvaluationError: the endpoint can't be used: no key, or no `name` and no answer.
    """
    endpoint = endpoint_of(model)
    if endpoint is None:
        assert isinstance(model, str), "an Endpoint is one"
        subject = open_model(model, dtype=dtype)
        return CheckpointResponder(
            subject, backend=backend, dtype=dtype, batch_tokens=batch_tokens, label=label
        )
    from dualign.generation.endpoint import EndpointResponder

    return EndpointResponder(endpoint, label=label)
