"""What a model gives to a request: answers, and what follows a prompt or a closed trace.

A multiple-choice task scores its texts: in no_think mode after the prompt, in think mode after the
trace that the model wrote up to its limit, closed. An answer whose start is given goes on from it,
in think mode after the trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualign.evaluation.requests import EvalRequest
from dualign.generation.answers import (
    Answer,
    AnswerRequest,
    LikelihoodResponder,
    Prompt,
    Responder,
    ask,
    request_key,
    require_all,
)
from dualign.generation.likelihoods import LikelihoodRequest
from dualign.generation.samples import AnswerRecord, SampleFile
from dualign.generation.thinking import Reply

_Written = Sequence[tuple[Answer, ...]]
"""The answers to what each request asks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """All that a model gave to one request."""

    answer: Answer
    repeats: tuple[Answer, ...] = ()
    """judged together with the answer"""
    texts: tuple[str, ...] = ()
    """the answers as a harness reads them: with white space around them, without special tokens"""
    likelihoods: tuple[tuple[float, bool], ...] = ()
    """of the problem's texts, in place of an answer"""
    more: tuple[AnswerRecord, ...] = ()
    """what was asked besides the answer, for samples.jsonl"""


def respond(
    responder: Responder, requests: Sequence[EvalRequest], file: SampleFile, *, name: str
) -> list[Response]:
    """Return what a model gives to each request; what `file` holds isn't asked again.

    Args:
        name: identifies the model and its backend.

    Raises:
        EvaluationError: it can't be asked, or an endpoint left something without an answer.
    """
    asked = [part for request in requests for part in request.asked]
    answers = iter(require_all(ask(responder, asked, file), responder, str(file.path)))
    written = [tuple(next(answers) for _ in request.asked) for request in requests]
    responses = []
    endings = _endings(responder, requests, written, file)
    scored = _scored(responder, requests, written, file, name)
    for place, (request, parts) in enumerate(zip(requests, written, strict=True)):
        answer = parts[0] if parts else _unwritten(responder, request)
        ending, scores = endings.get(place), scored.get(place)
        others = [part.request.key for part in (*parts[1:], *([ending] if ending else []))]
        records = [file.answered[key] for key in dict.fromkeys(others) if key != answer.request.key]
        answer = _ended(answer, ending) if ending else answer
        repeats = () if request.problem.choices else parts[1:]
        responses.append(
            Response(
                answer=answer,
                repeats=repeats,
                texts=tuple(_text(responder, part) for part in (answer, *repeats)),
                likelihoods=scores.likelihoods if scores else (),
                more=(*records, *([scores] if scores else [])),
            )
        )
    return responses


def _text(responder: Responder, answer: Answer) -> str:
    text = answer.reply.untrimmed
    for token in responder.special_tokens if isinstance(responder, LikelihoodResponder) else ():
        text = text.replace(token, "")
    return text


def _unwritten(responder: Responder, request: EvalRequest) -> Answer:
    """Return the answer of a request for which nothing is written."""
    reply = Reply(
        thinking=None, answer="", closed=False, leaked=False, empty=False, cut_in_think=False
    )
    return Answer(
        model=responder.model,
        request=request.answer,
        reply=reply,
        finished=True,
        think_tokens=0,
        answer_tokens=0,
        generated="",
        usage=None,
    )


def _endings(
    responder: Responder, requests: Sequence[EvalRequest], written: _Written, file: SampleFile
) -> dict[int, Answer]:
    """Return what follows the given start of an answer, after its trace, by the place of the request."""
    if not isinstance(responder, LikelihoodResponder):
        return {}
    asked = {
        place: _ending(request, parts[0].request, responder.following(parts[0]))
        for place, (request, parts) in enumerate(zip(requests, written, strict=True))
        if parts and request.begun and not request.problem.choices
    }
    answers = require_all(ask(responder, list(asked.values()), file), responder, str(file.path))
    return dict(zip(asked, answers, strict=True))


def _ending(request: EvalRequest, whole: AnswerRequest, head: str) -> AnswerRequest:
    text = head + request.begun
    own = request.problem.sampling
    sampling = replace(whole.sampling, max_new_tokens=own.max_new_tokens) if own else whole.sampling
    prompt = Prompt(text=text, mode="no_think", messages=whole.prompt.messages)
    key = request_key([whole.key, text, sampling.max_new_tokens])
    return replace(whole, prompt=prompt, sampling=sampling, key=key, budget=None, whole=None)


def _ended(answer: Answer, ending: Answer) -> Answer:
    """Return an answer with its trace, and the text of `ending`."""
    reply = replace(
        answer.reply,
        answer=ending.reply.answer,
        untrimmed=ending.reply.untrimmed,
        leaked=answer.reply.leaked or ending.reply.leaked,
    )
    return replace(
        answer, reply=reply, finished=ending.finished, answer_tokens=ending.answer_tokens
    )


def _scored(
    responder: Responder,
    requests: Sequence[EvalRequest],
    written: _Written,
    file: SampleFile,
    name: str,
) -> dict[int, AnswerRecord]:
    """Return the likelihoods of each request's texts, by its place; texts after one context at once."""
    contexts = {
        place: _contexts(responder, request, parts)
        for place, (request, parts) in enumerate(zip(requests, written, strict=True))
        if request.problem.choices
    }
    keys = {
        place: request_key([name, heads, _texts(requests[place])])
        for place, heads in contexts.items()
    }
    missing = {key: place for place, key in keys.items() if key not in file.answered}
    if missing:
        _score(
            responder, requests, {place: contexts[place] for place in missing.values()}, keys, file
        )
    return {place: file.answered[key] for place, key in keys.items()}


def _texts(request: EvalRequest) -> tuple[str, ...]:
    return tuple(choice.text for choice in request.problem.choices)


def _contexts(
    responder: Responder, request: EvalRequest, parts: Sequence[Answer]
) -> list[str | None]:
    """Return what each text of a problem follows."""
    assert isinstance(responder, LikelihoodResponder), "others are refused before"
    problem = request.problem
    prompts = [part.prompt.text for part in (request.answer, *request.more)]
    heads = [responder.following(part) + request.begun for part in parts] or prompts
    return [
        heads[problem.contexts.index(choice.messages)]
        if choice.messages
        else None
        if choice.messages is None
        else ""
        for choice in problem.choices
    ]


def _score(
    responder: Responder,
    requests: Sequence[EvalRequest],
    contexts: dict[int, list[str | None]],
    keys: dict[int, str],
    file: SampleFile,
) -> None:
    """Score the texts of requests, by their place, and append them to the file as they come."""
    assert isinstance(responder, LikelihoodResponder), "others are refused before"
    parts = [
        (place, head, tuple(number for number, other in enumerate(heads) if other == head))
        for place, heads in contexts.items()
        for head in dict.fromkeys(heads)
    ]
    asked = [
        LikelihoodRequest(
            context=head, texts=tuple(_texts(requests[place])[number] for number in numbers)
        )
        for place, head, numbers in parts
    ]
    values: dict[int, dict[int, tuple[float, bool]]] = {place: {} for place in contexts}
    for batch in responder.likelihoods(asked):
        whole = []
        for index, scores in batch.items():
            place, _, numbers = parts[index]
            values[place] |= dict(zip(numbers, scores, strict=True))
            if len(values[place]) == len(contexts[place]):
                pairs = tuple(values[place][number] for number in range(len(contexts[place])))
                whole.append(
                    AnswerRecord(key=keys[place], generated="", finished=True, likelihoods=pairs)
                )
        file.append(whole)
