"""Minimal revision: a stronger model mends the model's answers, and the pair is (revision, answer).

Contrastive Learning from AI Revisions (CLAIR, arXiv 2408.06266, section 3): since only what is
wrong changes, a pair says what made the answer worse, and little else. Trace and answer are both
shown in think mode, and both revised.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from dualign.data.think_tags import LEAKED_TAG
from dualign.evaluation.requests import render_question
from dualign.generation.answers import Answer, ask, sample_request
from dualign.generation.sampling import Sampling
from dualign.generation.thinking import Reply
from dualign.preference.pair_choice import Candidate, PromptPairs
from dualign.preference.pair_samples import AskedPrompt, Sample, Sampler
from dualign.preference.pairs_config import RevisionConfig
from dualign.tasks.base import Problem

_MINIMAL = (
    "Correct what is wrong in it. If nothing is, make it clearer where that takes a few words."
)
"""What is asked of the reviser where a recipe gives no `instruction`."""
_REQUEST = (
    "A student answered a question. Revise the student's answer.\n\n{instruction}\n\n"
    "Change as little as you can: copy word for word whatever may stay, and keep the form and the length. "
    "Write as the student would: don't mention an earlier answer, a mistake, a revision, or what the right "
    "answer is known to be.\n\n{parts}\n\n{form}, and nothing before, between or after."
)
_FORM = "Write the whole revised answer between <revised_answer> and </revised_answer>"
_FORM_WITH_TRACE = (
    "Write the whole revised reasoning between <revised_reasoning> and </revised_reasoning>, then the "
    "whole revised answer between <revised_answer> and </revised_answer>"
)
_REVISED = re.compile(
    r"\s*(?:<revised_reasoning>(?P<trace>.*)</revised_reasoning>\s*)?"
    r"<revised_answer>(?P<answer>.*)</revised_answer>\s*",
    re.DOTALL,
)
_TAG = re.compile(r"</?revised_(?:reasoning|answer)>")
_REASONS = (
    *("failed", "cut", "unreadable", "unchanged"),
    *("still_wrong", "rewritten", "too_long"),
)
"""Why a revision makes no pair, from the earliest check to the last. A prompt without a pair is counted by
the revision that came furthest.
"""


@dataclass(kw_only=True, slots=True)
class _Revision:
    """A sample with its revision; `reason` says why it makes no pair."""

    prompt: AskedPrompt
    student: Sample
    revised: Sample | None = None
    reason: str = ""
    similarity: float = 0.0


class Reviser:
    """The model that revises, and what came of it."""

    def __init__(self, config: RevisionConfig, sampler: Sampler) -> None:
        self.config, self._sampler = config, sampler
        self._outcomes = Counter[str]()
        self._similarities: list[float] = []

    def revise(self, prompts: Sequence[AskedPrompt]) -> list[PromptPairs]:
        """Return each prompt with the pairs of its samples and their revisions.

        Wrong samples are revised; where nothing checks them, any. At most `pairs_per_prompt` of a prompt.
        """
        items = [PromptPairs(prompt=prompt, pairs=[]) for prompt in prompts]
        waiting: list[tuple[PromptPairs, _Revision]] = []
        for item in items:
            students = self._students(item.prompt)
            if not students:
                item.reason = "all_right" if item.prompt.samples else item.prompt.fault
            waiting += [(item, _Revision(prompt=item.prompt, student=s)) for s in students]
        answers = self._ask([revision for _, revision in waiting])
        for (item, revision), answer in zip(waiting, answers, strict=True):
            self._read(revision, answer)
            self._outcomes[revision.reason or "kept"] += 1
            if revision.revised is not None and not revision.reason:
                item.pairs.append(Candidate(chosen=revision.revised, rejected=revision.student))
                self._similarities.append(revision.similarity)
            else:
                reasons = filter(None, (item.reason, revision.reason))
                item.reason = max(reasons, key=_REASONS.index)
        for item in items:
            item.reason = "" if item.pairs else item.reason
        return items

    def record(self) -> dict[str, Any]:
        """Return what was revised, for run.json."""
        kept = self._similarities
        return {
            "asked": self._outcomes.total(),
            "kept": len(kept),
            "dropped": {name: n for name, n in self._outcomes.most_common() if name != "kept"},
            "similarity": round(sum(kept) / len(kept), 3) if kept else None,
        }

    def _students(self, prompt: AskedPrompt) -> list[Sample]:
        """Return the samples to be revised: different ones, drawn."""
        waiting = [sample for sample in prompt.samples if not sample.verdict]
        distinct = list({sample.text: sample for sample in waiting}.values())
        rng = random.Random(f"{self._sampler.seed}:{prompt.key}")
        return rng.sample(distinct, min(self._sampler.stage.pairs_per_prompt, len(distinct)))

    def _ask(self, revisions: Sequence[_Revision]) -> list[Answer | None]:
        """Return what the reviser wrote for each; one answer to a request that stands twice."""
        config, sampler = self.config, self._sampler
        responder = sampler.open(config.model, "revising with")
        switch = responder.switch_of(sampler.stage.switch)
        sampling = Sampling(
            max_new_tokens=sampler.stage.revision_tokens, temperature=config.temperature
        )
        identity = f"{sampler.identity(responder)}:revise"
        requests = []
        for revision in revisions:
            text = _request(config, revision.prompt, revision.student)
            message = {"role": "user", "content": text}
            problem = Problem(
                id=revision.prompt.question.id, messages=(message,), expected=None, extra={}
            )
            prompt = render_question(responder, problem, config.mode, switch)
            requests.append(sample_request(prompt, sampling, 0, identity))
        answers = ask(responder, requests, sampler.file)
        sampler.close(responder, config.model, " (revises)")
        return answers

    def _read(self, revision: _Revision, answer: Answer | None) -> None:
        """Set what came of a revision."""
        if answer is None or not answer.finished:
            revision.reason = "failed" if answer is None else "cut"
            return
        reply = read_revision(answer.reply.answer, with_trace=revision.prompt.mode == "think")
        if reply is None:
            revision.reason = "unreadable"
            return
        revision.revised = Sample(reply=reply, writer=answer.model)
        for sample in (revision.student, revision.revised):
            # The reviser may be the first checkpoint: its tokenizer counts both then.
            sample.tokens = self._sampler.counter.count_all(sample.text)
        revision.reason = self._fault(revision, revision.revised)

    def _fault(self, revision: _Revision, revised: Sample) -> str:
        """Return why a revision makes no pair; "" if it does."""
        student, config = revision.student, self.config
        if revised.text == student.text:
            return "unchanged"
        revised.verdict = revision.prompt.question.verdict(revised.reply.answer)
        if revised.verdict is not None and not revised.verdict:
            return "still_wrong"
        revision.similarity = similarity(student.text, revised.text)
        if revision.similarity < config.min_similarity:
            return "rewritten"
        too_long = revised.tokens > config.max_growth * student.tokens
        return "too_long" if too_long else ""


def _request(config: RevisionConfig, prompt: AskedPrompt, student: Sample) -> str:
    """Return what the reviser is asked for one answer."""
    question, (trace, answer) = prompt.question, student.text
    turns = [str(turn["content"]) for turn in question.messages]
    if len(turns) > 1:
        turns = [f"{turn['role']}: {turn['content']}" for turn in question.messages]
    parts = [("question", "\n\n".join(turns))]
    if config.reference and question.reference:
        parts.append(("right_answer", question.reference))
    if trace is not None:
        parts.append(("student_reasoning", trace))
    parts.append(("student_answer", answer))
    return _REQUEST.format(
        instruction=config.instruction or _MINIMAL,
        parts="\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in parts),
        form=_FORM if trace is None else _FORM_WITH_TRACE,
    )


def read_revision(text: str, *, with_trace: bool) -> Reply | None:
    """Return the revision that a text gives; None unless it has exactly the form that was asked for."""
    match = _REVISED.fullmatch(text)
    if match is None or len(_TAG.findall(text)) != (4 if with_trace else 2):
        return None
    trace, answer = (part and part.strip() for part in match.groups())
    if not answer or with_trace != bool(trace) or LEAKED_TAG.search(text):
        return None
    return Reply(
        thinking=trace or None,
        answer=answer,
        closed=with_trace,
        leaked=False,
        empty=False,
        cut_in_think=False,
    )


def similarity(first: Iterable[str | None], second: Iterable[str | None]) -> float:
    """Return how alike trace and answer of two replies are, by words: 1 is equal, 0 has none in common."""
    before, after = (" ".join(filter(None, texts)).split() for texts in (first, second))
    return SequenceMatcher(None, before, after, autojunk=False).ratio()
