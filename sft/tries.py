"""One try of a trace: a question is asked, and what the model writes is accepted or rejected with a reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.data.config import SourceConfig
from dualign.data.conversation import Message
from dualign.data.faults import RowError
from dualign.data.questions import Question
from dualign.data.rows.sources import to_conversation
from dualign.data.rows.text_rules import NO_RULES, TextRules, text_rules
from dualign.data.rows.traces import without_flags
from dualign.data.text.template import load_template
from dualign.data.text.trace_form import message_dict
from dualign.data.tool_calls import calls_in, same_calls, uses_tools
from dualign.errors import EvaluationError, TemplateError
from dualign.evaluation.requests import render_question
from dualign.generation.answers import Answer, Prompt, Responder, ask, sample_request
from dualign.generation.responders import CheckpointResponder, open_responder
from dualign.generation.samples import SampleFile
from dualign.generation.sampling import Sampling
from dualign.sft.approval import Approval
from dualign.sft.config import TracesStage
from dualign.sft.questions import as_problem
from dualign.switch import ENABLE_THINKING, KNOWN

REASONS = (
    "failed",
    "no_trace",
    "empty_trace",
    "trace_cut",
    "answer_cut",
    "malformed",
    "called_tool",
    "no_call",
    "not_judged",
    "no_right_answer",
    "another_call",
    "judged_worse",
    "low_score",
    "too_short",
    "too_long",
    "unusable",
)
"""Why a try is rejected, from the earliest check to the last. A row without a trace is counted by the
try that came furthest.
"""
_PLAIN = SourceConfig(path="traces.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """What came of one answer; `reason` says why it is rejected, "" if it is accepted."""

    number: int
    """counts the tries of a question"""
    reason: str
    trace: str = ""
    answer: str = ""
    """the text for the user, as the model wrote it"""
    tokens: int = 0
    """of the trace"""


class Thinker:
    """The model of a stage. Its answers go into `work` as they come; those that are there aren't asked again."""

    def __init__(self, stage: TracesStage, work: Path, *, seed: int) -> None:
        self.stage, self.file = stage, SampleFile(work / "generations.jsonl")
        self.approval = Approval(stage, work, seed=seed)
        self.responder = open_responder(
            stage.model,
            backend=stage.backend,
            dtype=stage.dtype,
            batch_tokens=stage.batch_tokens,
            label=f"{stage.name}: thinking",
        )
        self._switch = self.responder.switch_of(stage.switch)
        self._name = f"{self.responder.identity}:{seed}"
        self._rules = _rules(self.responder)

    def tries(self, questions: Sequence[Question], numbers: Sequence[int]) -> list[list[Try]]:
        """Return the tries of these numbers of each question."""
        stage = self.stage
        sampling = Sampling(
            max_new_tokens=stage.max_new_tokens, temperature=stage.temperature, top_p=stage.top_p
        )
        requests = [
            sample_request(prompt, sampling, number, self._name)
            for question in questions
            for prompt in [self._prompt(question)]
            for number in numbers
        ]
        asked = [question for question in questions for _ in numbers]
        tries = iter(self._judged(asked, ask(self.responder, requests, self.file)))
        return [[replace(next(tries), number=number) for number in numbers] for _ in questions]

    def askable(self, question: Question) -> Question:
        """Return the question, passed over if it has tools, calls or results that the model's template lacks."""
        conversation = question.conversation
        if question.passed or conversation is None or not uses_tools(conversation):
            return question
        try:
            self._prompt(question)
        except EvaluationError:
            return replace(question, passed="tools")
        return question

    def _prompt(self, question: Question) -> Prompt:
        problem = as_problem(self.stage, question)
        return render_question(self.responder, problem, self.stage.mode, self._switch)

    def _judged(
        self, questions: Sequence[Question], answers: Sequence[Answer | None]
    ) -> Iterator[Try]:
        """Yield what comes of each answer, unnumbered. A row's calls are compared; other answers are judged."""
        attempts = list(map(self._attempt, questions, answers))
        whole = [
            (question, attempt.answer)
            for question, attempt in zip(questions, attempts, strict=True)
            if not attempt.reason and not question.calls
        ]
        reasons = iter(self.approval.reasons(whole))
        for question, attempt in zip(questions, attempts, strict=True):
            if attempt.reason:
                yield attempt
                continue
            reason = "" if question.calls else next(reasons)
            yield replace(attempt, reason=reason or self._unfit(question, attempt))

    def _attempt(self, question: Question, answer: Answer | None) -> Try:
        """Return the trace and answer of what a model wrote, rejected if it is no whole answer, or if it
        calls what it shouldn't.
        """
        if answer is None:
            return Try(number=0, reason="failed")
        reply, tokens = answer.reply, answer.think_tokens
        trace = reply.thinking or ""
        if self.stage.trace == "answer":
            trace, tokens = reply.answer, answer.answer_tokens
        reason = answer.fault or _call_fault(question, reply.answer)
        return Try(number=0, reason=reason, trace=trace, answer=reply.answer, tokens=tokens)

    def _unfit(self, question: Question, attempt: Try) -> str:
        """Return why an accepted answer gives no row; "" if it gives one."""
        stage = self.stage
        if attempt.tokens < (stage.min_trace_tokens or 0):
            return "too_short"
        if stage.max_trace_tokens is not None and attempt.tokens > stage.max_trace_tokens:
            return "too_long"
        row = think_row(stage, question, attempt.trace, attempt.answer)
        try:
            to_conversation(row, source=_PLAIN, index=question.row, rules=self._rules)
        except RowError:
            return "unusable"
        return ""


def _call_fault(question: Question, answer: str) -> str:
    """Return why an answer doesn't call what its row calls; "" if it does, or if neither calls."""
    conversation = question.conversation
    assert conversation is not None, "only a row that was read is asked"
    if not uses_tools(conversation):
        return ""
    calls = calls_in(answer, conversation)
    if not question.calls:
        return "" if calls == [] else "called_tool"
    if calls == []:
        return "no_call"
    return "" if calls and same_calls(calls, question.calls) else "another_call"


def think_row(stage: TracesStage, question: Question, trace: str, answer: str) -> dict[str, Any]:
    """Return the row of a trace. Earlier answers of its conversation have no trace, so they aren't trained."""
    assert question.conversation is not None, "only a row that was read is asked"
    *before, last = without_flags(question.conversation.messages, "think")
    earlier = [_turn(message, train=message.role != "assistant") for message in before]
    final = {**_turn(last, train=True), "reasoning_content": trace}
    if stage.answer == "model" and not question.calls:
        final["content"] = answer
    row = plain_row(question, [*earlier, final], "think")
    # A variable that switches says the mode of the row as it came.
    names = {
        name for switch in (*KNOWN, stage.switch or ENABLE_THINKING) for name in switch.names()
    }
    variables = row.pop("chat_template_kwargs", {})
    kept = {name: value for name, value in variables.items() if name not in names}
    return {**row, "chat_template_kwargs": kept} if kept else row


def plain_row(
    question: Question, turns: Sequence[dict[str, Any]] | None = None, mode: str | None = None
) -> dict[str, Any]:
    """Return a row in the shape that every stage reads: as it came, or with other turns and mode."""
    conversation = question.conversation
    assert conversation is not None, "a refused row isn't written"
    if turns is None:
        turns = [_turn(message, train=message.train) for message in conversation.messages]
    row: dict[str, Any] = {"messages": list(turns), "mode": mode or conversation.mode}
    if conversation.tools:
        row["tools"] = [dict(tool) for tool in conversation.tools]
    if conversation.template_kwargs:
        row["chat_template_kwargs"] = dict(conversation.template_kwargs)
    return row | {"id": question.id}


def _turn(message: Message, *, train: bool) -> dict[str, Any]:
    turn = message_dict(message, "reasoning_content")
    return turn if train else {**turn, "train": False}


def _rules(responder: Responder) -> TextRules:
    """Return the rules that keep a checkpoint's control tokens out of traces."""
    if not isinstance(responder, CheckpointResponder):
        return NO_RULES
    tokenizer = responder.subject.tokenizer
    try:
        rules = text_rules(tokenizer, load_template("tokenizer", tokenizer=tokenizer))
    except TemplateError:
        return NO_RULES
    return TextRules(control=rules.control, head=rules.head)
