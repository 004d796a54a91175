"""An OpenAI-compatible endpoint that answers: prompts of both modes, its key, its counts."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dualign.data.conversation import Mode
from dualign.data.think_tags import LEAKED_TAG, OPEN
from dualign.errors import EvaluationError
from dualign.generation.answers import AnswerRequest, Generation, Prompt
from dualign.generation.config import Endpoint
from dualign.generation.connection import Connection
from dualign.generation.dispatch import Tally, dispatch
from dualign.generation.samples import AnswerRecord
from dualign.generation.sampling import Sampling
from dualign.generation.stops import Stops
from dualign.generation.thinking import TAGS, Reply
from dualign.generation.wire import build_prompt, request_body, with_budget
from dualign.switch import ENABLE_THINKING, Switch

_ANSWER = ("url", "name", "body", "limit_field")
"""Settings that its answers depend on, besides the prompt."""


class EndpointResponder:
    """A model behind a server."""

    marks = TAGS

    def __init__(self, endpoint: Endpoint, *, label: str) -> None:
        """Find the key, and the model's name if there is none.

        Raises:
            EvaluationError: the variable of the key isn't set, or the server names no single model.
        """
        self.endpoint, self._label = endpoint, label
        self.connection = Connection(endpoint)
        self.name = endpoint.name or self.connection.only_model()
        self.model = endpoint.label
        settings = {**asdict(endpoint), "name": self.name}
        content = json.dumps([settings[name] for name in _ANSWER], sort_keys=True, default=str)
        self.identity = f"{endpoint.url} {self.name} {hashlib.sha256(content.encode()).hexdigest()}"
        self.without_modes = endpoint.switch is not None and not endpoint.switch
        self._tally = Tally(endpoint)
        self._accounted: set[str] = set()

    def switch_of(self, named: Switch | None) -> Switch:
        """Return the endpoint's own switch, else the one that a task or stage names."""
        own = self.endpoint.switch
        if own is not None:
            return own
        return ENABLE_THINKING if named is None else named

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        mode: Mode,
        switch: Switch | None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        return build_prompt(messages, mode, self.switch_of(switch), tools)

    def generate(
        self, prompts: Sequence[Prompt], samplings: Sequence[Sampling], seeds: Sequence[int]
    ) -> Iterator[dict[int, Generation]]:
        """Yield answers as they come. Stop strings cut them here: a server's would end a trace, too.

        Raises:
            EvaluationError: the server can't be used, a budget is spent, or more than `max_failed` of
                the requests have failed. What was answered until then has been yielded.
        """
        bodies = [
            request_body(self.endpoint, self.name, prompt, sampling, seed)
            for prompt, sampling, seed in zip(prompts, samplings, seeds, strict=True)
        ]
        modes = [prompt.mode for prompt in prompts]
        limits = [sampling.max_new_tokens for sampling in samplings]
        batches = dispatch(self.connection, bodies, modes, limits, self._tally, label=self._label)
        for batch in batches:
            yield {
                # The text has the tags of a trace that the prompt opened.
                i: Stops(samplings[i].stop, TAGS).apply("", self._read(prompts[i], generation))
                for i, generation in batch.items()
            }

    def _read(self, prompt: Prompt, generation: Generation) -> Generation:
        """Read what was cut before any tag as thinking, if thinking was asked for.

        A server that gives tags in the text gives none where its template opened the block and the
        limit ended it: half a trace would be judged as an answer.
        """
        is_switched = self.endpoint.switch or prompt.fields.keys() - {"tools"}
        is_whole = generation.finished or LEAKED_TAG.search(generation.text)
        has_hidden_trace = (generation.usage or {}).get("reasoning")
        if prompt.mode == "no_think" or not is_switched or is_whole or has_hidden_trace:
            return generation
        return replace(generation, text=f"{OPEN}\n{generation.text.lstrip()}")

    def closed(self, request: AnswerRequest, trace: AnswerRecord) -> AnswerRequest | None:
        """Return the request with the budget in the server's own field.

        Raises:
            EvaluationError: the endpoint doesn't name that field.
        """
        assert request.budget is not None, "a request with a budget"
        field, tokens = self.endpoint.thinking_budget_field, request.budget.tokens
        if field is None:
            raise EvaluationError(
                f"{self.endpoint.label} at {self.endpoint.url}: {self.endpoint.budget_problem}"
            )
        usage = trace.usage or {}
        most = usage.get("reasoning") or usage.get("completion")
        if tokens and most is not None and most <= tokens:
            return None
        prompt = with_budget(request.prompt, field, tokens)
        limit = tokens + request.sampling.max_new_tokens  # a server counts both
        sampling = replace(request.sampling, max_new_tokens=limit)
        return replace(request, prompt=prompt, sampling=sampling)

    def tokens(self, reply: Reply, record: AnswerRecord) -> tuple[int, int]:
        """Return what the server counted: its own count of the trace, else shares by length."""
        usage = record.usage or {}
        thinking, answer = len(reply.thinking or ""), len(reply.answer)
        total = usage.get("completion", (thinking + answer + 3) // 4)
        share = round(total * thinking / (thinking + answer)) if thinking + answer else 0
        trace = (
            usage.get("reasoning") or share
        )  # a hosted model may count a trace that it doesn't show
        trace = max(0, min(trace, total - bool(answer)))
        return trace, total - trace

    def account(self, records: Sequence[AnswerRecord]) -> None:
        """Count answers that were there before against the budget."""
        for answer in records:
            if answer.key not in self._accounted:
                self._accounted.add(answer.key)
                self._tally.count(answer.usage, known=True)

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "url": self.endpoint.url, **self._tally.record()}
