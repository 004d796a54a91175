"""The seam between what samples and who answers: prompts in, answers with their traces out.

    responder = open_responder("stage:sft", backend="transformers", ...)     # or an Endpoint
    requests = [AnswerRequest(prompt=responder.prompt(messages, "think", switch), ...)]
    for answer in ask(responder, requests, SampleFile(work / "answers.jsonl")): ...

Evaluation and `kind: pairs` ask through it. What is in the file isn't asked again.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from dualign.data.conversation import Mode
from dualign.errors import EvaluationError
from dualign.generation.budgets import Budget
from dualign.generation.likelihoods import Likelihood, LikelihoodRequest
from dualign.generation.samples import AnswerRecord, SampleFile
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import Reply, TraceMarks, split
from dualign.progress import ProgressNotes
from dualign.switch import Switch


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A conversation up to the answer, in one mode."""

    text: str
    """rendered by the model's own template; of an endpoint, what is asked as JSON"""
    mode: Mode
    messages: tuple[Mapping[str, Any], ...]
    """with the words that switch the mode"""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """of an endpoint's request, besides messages and sampling: the mode's switch, tools"""
    begun: str = ""
    """the start of the answer, which the model goes on from"""
    token_ids: tuple[int, ...] = ()
    """of the text and of what is begun, where something is"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Continuation of a prompt: with special tokens, without the token that ended the turn."""

    text: str
    token_ids: tuple[int, ...] = ()
    """of a model in this process; with those that hold a stop string"""
    finished: bool
    """the model ended its turn, or a stop string did; False when the token limit cut it"""
    usage: Mapping[str, int] | None = None
    """tokens as an endpoint counted them: `prompt`, `completion`, and perhaps `reasoning`"""


class Responder(Protocol):
    """Something that answers: a checkpoint in this process, by whatever backend, or an endpoint."""

    model: str
    """its name in tables"""
    identity: str
    """changes when its answers may"""
    without_modes: bool
    """it is known to have no modes"""

    @property
    def marks(self) -> TraceMarks:
        """What it writes around a trace."""

    def switch_of(self, named: Switch | None) -> Switch | None:
        """Return what switches the modes, if a task or stage names `named`."""

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        mode: Mode,
        switch: Switch | None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """Return the prompt of a conversation; a checkpoint's template can raise anything."""

    def generate(
        self, prompts: Sequence[Prompt], samplings: Sequence[Sampling], seeds: Sequence[int]
    ) -> Iterator[dict[int, Generation]]:
        """Yield generations by the index of their prompt, as they come. An endpoint leaves out what
        it couldn't answer within its bound.
        """

    def closed(self, request: "AnswerRequest", trace: AnswerRecord) -> "AnswerRequest | None":
        """Return the request whose answer follows a trace that was closed at the request's budget;
        None if the trace is no longer than that.

        Raises:
            EvaluationError: it can't close traces.
        """

    def tokens(self, reply: Reply, record: AnswerRecord) -> tuple[int, int]:
        """Return the tokens of the trace and of the answer."""

    def account(self, records: Sequence[AnswerRecord]) -> None:
        """Count answers that were there before against a budget."""

    def record(self) -> dict[str, Any] | None:
        """Return what was asked, for run.json; None if nothing is counted."""


@runtime_checkable
class LikelihoodResponder(Protocol):
    """A responder that has the probabilities of texts, and goes on from any text."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the vocabulary's special tokens, which are no part of an answer."""

    def likelihoods(
        self, requests: Sequence[LikelihoodRequest]
    ) -> Iterator[dict[int, tuple[Likelihood, ...]]]:
        """Yield the likelihoods of each request's texts by its index, as they come."""

    def following(self, answer: "Answer") -> str:
        """Return the prompt and the trace of an answer, closed: what its text follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRequest:
    """One answer to be sampled; requests with the same key share it."""

    prompt: Prompt
    sampling: Sampling
    seed: int
    key: str
    budget: Budget | None = None
    """where the trace is closed; its answer then has the limit of `sampling`"""
    whole: "AnswerRequest | None" = None
    """with a budget: the request without one, whose trace is cut; its answer counts where the trace
    is no longer
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer, split into trace and text, with what it was asked by."""

    model: str
    request: AnswerRequest
    reply: Reply
    """trace and answer, and the form of both"""
    finished: bool
    """the model ended its turn; False when the token limit cut it"""
    think_tokens: int
    answer_tokens: int
    generated: str
    """the whole text, think tags included"""
    usage: Mapping[str, int] | None
    budget: int | None = None
    """tokens of the budget at which it was asked; None if it is the answer without one"""
    closed_by_budget: bool = False
    """its trace was closed there, not by the model"""

    @property
    def fault(self) -> str:
        """Why it is no whole answer in its mode, in a word that can be counted; "" if it is one."""
        return self.reply.fault(self.request.prompt.mode, finished=self.finished)


def request_key(content: Sequence[Any]) -> str:
    """Return the key of a request: a hash of all that its answer depends on."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def sample_request(prompt: Prompt, sampling: Sampling, number: int, name: str) -> AnswerRequest:
    """Return the request of one of several samples of a prompt; each has a seed of its own.

    Args:
        number: counts the samples of the prompt.
        name: identifies the model and the stage's seed.
    """
    content = [
        name, prompt.text, number, sampling.max_new_tokens, sampling.temperature, sampling.top_p,
        *([] if sampling.top_k is None else [sampling.top_k]), *sampling.stop,
    ]  # fmt: skip
    key = request_key(content)
    return AnswerRequest(prompt=prompt, sampling=sampling, seed=int(key[:12], 16), key=key)


def budgeted(whole: AnswerRequest, budget: Budget, *, answer_tokens: int) -> AnswerRequest:
    """Return the request of an answer whose trace is that of `whole`, closed at a budget.

    Args:
        answer_tokens: the limit of the answer after the trace.
    """
    content = [whole.key, budget.tokens, budget.closing, answer_tokens]
    key = request_key(content)
    return replace(
        whole,
        sampling=replace(whole.sampling, max_new_tokens=answer_tokens),
        seed=int(key[:12], 16) if whole.sampling.temperature else 0,
        key=key,
        budget=budget,
        whole=whole,
    )


def ask(
    responder: Responder, requests: Sequence[AnswerRequest], file: SampleFile
) -> list[Answer | None]:
    """Return the answer of each request; None where an endpoint gave none within its bound.

    Answers are appended to `file` as they come; those that it holds aren't sampled again.

    Raises:
        EvaluationError: an endpoint can't be used, or left too much without an answer.
    """
    keys = {request.key for request in requests}
    responder.account([file.answered[key] for key in sorted(keys & file.earlier)])
    cut = {request.whole.key for request in requests if request.whole}
    _ask(responder, [request.whole or request for request in requests], file, keep=cut)
    followed = _closed(responder, requests, file)
    _ask(responder, list(followed.values()), file)
    return [_found(responder, request, file, followed) for request in requests]


def _ask(
    responder: Responder,
    requests: Sequence[AnswerRequest],
    file: SampleFile,
    keep: Collection[str] = (),
) -> None:
    """Ask what isn't in the file; the tokens of answers with the keys `keep` are written as well."""
    missing = {request.key: request for request in requests if request.key not in file.answered}
    _generate(responder, list(missing.values()), file, keep)


def _closed(
    responder: Responder, requests: Sequence[AnswerRequest], file: SampleFile
) -> dict[str, AnswerRequest]:
    """Return what is to be asked after traces that are longer than their budget, by key."""
    waiting = {
        request.key: (request, file.answered[request.whole.key])
        for request in requests
        if request.whole and request.key not in file.answered and request.whole.key in file.answered
    }
    followed = ((key, responder.closed(*item)) for key, item in waiting.items())
    return {key: request for key, request in followed if request is not None}


def _found(
    responder: Responder,
    request: AnswerRequest,
    file: SampleFile,
    followed: Collection[str],
) -> Answer | None:
    """Return the answer of a request: its own, or the whole one that its budget didn't cut."""
    if request.key in file.answered:
        return _answer(responder, request, file)
    if request.whole and request.key not in followed and request.whole.key in file.answered:
        return _answer(responder, request.whole, file)
    return None


def require_all(answers: Sequence[Answer | None], responder: Responder, where: str) -> list[Answer]:
    """Return the answers if none is missing.

    Raises:
        EvaluationError: one is.
    """
    there = [answer for answer in answers if answer is not None]
    if len(there) < len(answers):
        failed = (responder.record() or {}).get("failed", {})
        reasons = ", ".join(f"{reason}: {n}" for reason, n in failed.items())
        raise EvaluationError(
            f"{responder.model}: {len(answers) - len(there)} of {len(answers)} requests got no answer "
            f"({reasons}), and an evaluation needs all; {where} keeps the others: run again to ask "
            "for the rest"
        )
    return there


def _generate(
    responder: Responder, missing: Sequence[AnswerRequest], file: SampleFile, keep: Collection[str]
) -> None:
    if not missing:
        return
    prompts, samplings = [r.prompt for r in missing], [r.sampling for r in missing]
    label = f"answers of {responder.model}"
    notes = ProgressNotes(file.path.parent, unit="answer", total=len(missing), doing=label)
    done = 0
    notes.note(done, at_once=True)
    for batch in responder.generate(prompts, samplings, [r.seed for r in missing]):
        done += len(batch)
        notes.note(done)
        file.append(
            AnswerRecord(
                key=missing[i].key,
                generated=prompts[i].begun + generation.text,
                finished=generation.finished,
                usage=generation.usage,
                token_ids=generation.token_ids if missing[i].key in keep else (),
            )
            for i, generation in batch.items()
        )


def _answer(responder: Responder, request: AnswerRequest, file: SampleFile) -> Answer:
    record = file.answered[request.key]
    reply = _reply(responder, request, record)
    think_tokens, answer_tokens = responder.tokens(reply, record)
    if request.budget and record.usage is None:  # it was cut in this process, at just that token
        think_tokens = request.budget.tokens
    return Answer(
        model=responder.model,
        request=request,
        reply=reply,
        finished=record.finished,
        think_tokens=think_tokens,
        answer_tokens=answer_tokens,
        generated=record.generated,
        usage=record.usage,
        budget=request.budget.tokens if request.budget else None,
        closed_by_budget=_was_closed(responder, request, file, reply, think_tokens),
    )


def _was_closed(
    responder: Responder, request: AnswerRequest, file: SampleFile, reply: Reply, think_tokens: int
) -> bool:
    """Return whether a budget closed the trace; what a server did shows in what came back."""
    if request.budget is None or request.whole is None:
        return False
    usage = file.answered[request.key].usage
    if usage is None:
        return True
    if request.sampling.temperature or "reasoning" in usage:
        return think_tokens >= request.budget.tokens
    whole = _reply(responder, request.whole, file.answered[request.whole.key])
    return reply.thinking != whole.thinking


def _reply(responder: Responder, request: AnswerRequest, record: AnswerRecord) -> Reply:
    return split(
        request.prompt.text,
        record.generated,
        mode=request.prompt.mode,
        finished=record.finished,
        marks=responder.marks,
    )
