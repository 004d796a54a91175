"""Samples of a pairs stage: every model of it answers every question in each mode."""

import gc
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualign.data.conversation import Mode
from dualign.errors import EvaluationError
from dualign.evaluation.requests import prompts_differ, render_question
from dualign.generation.answers import Answer, Prompt, Responder, ask, sample_request
from dualign.generation.config import Endpoint, model_label
from dualign.generation.responders import CheckpointResponder, control_of, open_responder
from dualign.generation.samples import SampleFile
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import Reply
from dualign.models import prompts
from dualign.preference.pair_lengths import TokenCounter
from dualign.preference.pair_questions import PairQuestion
from dualign.preference.pairs_config import PairsStage
from dualign.switch import Switch
from dualign.verifiers.base import Verdict


@dataclass(kw_only=True, slots=True, eq=False)
class Sample:
    """A whole answer in its mode, with what is known of it."""

    reply: Reply
    writer: str
    """the model's name"""
    verdict: Verdict | None = None
    """of the question's verifier"""
    score: float | None = None
    """by which samples of a prompt are compared; None: they aren't"""
    tokens: int = 0
    """of trace and answer together"""

    @property
    def text(self) -> tuple[str | None, str]:
        """Trace and answer."""
        return self.reply.thinking, self.reply.answer


@dataclass(kw_only=True, slots=True)
class Side:
    """Samples that a prompt got from one model, and why others can't be used: malformed, failed."""

    samples: list[Sample] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, answer: Answer | None, control: re.Pattern[str] | None) -> None:
        """Add an answer; None: an endpoint gave none. `control` are tokens that no text may hold: a
        stage that trains on the pair would refuse them.
        """
        if answer is None:
            self.faults.append("failed")
        elif answer.fault or (control is not None and _holds(control, answer.reply)):
            self.faults.append("malformed")
        else:
            self.samples.append(Sample(reply=answer.reply, writer=answer.model))


def _holds(control: re.Pattern[str], reply: Reply) -> bool:
    return any(control.search(text) for text in (reply.thinking, reply.answer) if text)


@dataclass(kw_only=True, slots=True)
class AskedPrompt:
    """A question in one mode, with the samples of each side."""

    question: PairQuestion
    first: Side = field(default_factory=Side)
    """chosen answers come from here; without a second side, rejected ones too"""
    second: Side | None = None
    """rejected answers come from here"""

    @property
    def mode(self) -> Mode:
        return self.question.mode

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other prompts of a stage."""
        return self.question.source, self.mode, self.question.id

    @property
    def sides(self) -> list[Side]:
        return [self.first] if self.second is None else [self.first, self.second]

    @property
    def samples(self) -> list[Sample]:
        return [sample for side in self.sides for sample in side.samples]

    @property
    def fault(self) -> str:
        """Why there aren't enough samples: `failed` if an endpoint left one of them out."""
        faults = [fault for side in self.sides for fault in side.faults]
        return "failed" if "failed" in faults else "malformed"


class Sampler:
    """Asks the models of a stage. Answers are appended to a file; those that are there aren't asked again."""

    def __init__(self, stage: PairsStage, work: Path, *, seed: int) -> None:
        self.stage, self.seed = stage, seed
        self.file = SampleFile(work / "generations.jsonl")
        self.asked: dict[str, dict[str, Any]] = {}
        """what endpoints were asked, for run.json"""
        self.samples = 0
        """how many were asked for"""
        self.counter = TokenCounter()

    def prompts(self, questions: Sequence[PairQuestion]) -> list[AskedPrompt]:
        """Return every question with the samples of each side."""
        stage = self.stage
        asked = [AskedPrompt(question=question) for question in questions]
        if stage.is_two_sided:
            for prompt in asked:
                prompt.second = Side()
        firsts = [prompt.first for prompt in asked]
        seconds = [prompt.second for prompt in asked if prompt.second is not None]
        if stage.chosen == "row":
            for prompt in asked:
                answer = prompt.question.row_answer
                assert answer is not None, "questions have it with chosen: row"
                prompt.first.samples.append(Sample(reply=answer, writer="row"))
            self._ask(stage.model, asked, seconds)
            return asked
        self._ask(stage.model, asked, firsts)
        if stage.rejected_model is not None:
            self._ask(stage.rejected_model, asked, seconds, note=" (rejected)")
        return asked

    def open(self, model: str | Endpoint, doing: str) -> Responder:
        """Open a model that answers; `doing` is said before its name in the progress bar."""
        name = Path(model).name if isinstance(model, str) else model_label(model)
        return open_responder(
            model,
            backend=self.stage.engine,
            dtype=self.stage.dtype,
            batch_tokens=self.stage.batch_tokens,
            label=f"{doing} {name}",
        )

    def identity(self, responder: Responder) -> str:
        """Return what the answers of a model depend on besides prompt and sampling."""
        return f"{responder.identity}:{self.seed}{self.stage.backend or ''}"

    def close(self, responder: Responder, model: str | Endpoint, note: str) -> None:
        """Keep what a model was asked, and how it counts tokens; `note` names it if it was asked before."""
        self.counter.learn(responder)
        if (record := responder.record()) is not None:
            name = model_label(model)
            self.asked[f"{name}{note}" if name in self.asked else name] = record

    def _ask(
        self,
        model: str | Endpoint,
        asked: Sequence[AskedPrompt],
        sides: Sequence[Side],
        *,
        note: str = "",
    ) -> None:
        """Add a model's samples to a side of each prompt."""
        stage = self.stage
        responder = self.open(model, "sampling")
        identity = self.identity(responder)
        rendered = self._rendered(responder, asked)
        sampling = Sampling(
            max_new_tokens=stage.max_new_tokens, temperature=stage.temperature, top_p=stage.top_p
        )
        numbers = range(stage.samples_asked)
        requests = [
            sample_request(prompt, sampling, n, identity) for prompt in rendered for n in numbers
        ]
        self.samples += len(requests)
        answers = iter(ask(responder, requests, self.file))
        control = None
        if isinstance(responder, CheckpointResponder):
            control = control_of(responder.subject.tokenizer)
        for side in sides:
            for _ in numbers:
                side.add(next(answers), control)
        self.close(responder, model, note)
        del responder
        gc.collect()  # the second model needs the room

    def _rendered(self, responder: Responder, asked: Sequence[AskedPrompt]) -> list[Prompt]:
        switches: dict[str, Switch | None] = {}
        for prompt in asked:
            question = prompt.question
            if question.source not in switches:
                switches[question.source] = self._switch(responder, question)
        return [
            render_question(
                responder, prompt.question.problem, prompt.mode, switches[prompt.question.source]
            )
            for prompt in asked
        ]

    def _switch(self, responder: Responder, question: PairQuestion) -> Switch | None:
        """Return what switches the modes; refuse a model that is asked in one way for both."""
        stage = self.stage
        named = question.switch if question.switch is not None else stage.switch
        switch = responder.switch_of(named)
        if len(stage.modes) > 1 and not prompts_differ(responder, switch):
            raise EvaluationError(
                f"stage {stage.name}, {responder.model}: {prompts.one_prompt(named)}. "
                "For a model without modes, sample one: modes: [no_think]"
            )
        return switch
