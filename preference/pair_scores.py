"""What is known of samples before pairs are chosen: lengths, whether they are right, what a judge says."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dualign.generation.samples import SampleFile
from dualign.judges.agreement import agreement
from dualign.judges.base import Comparison, JudgedQuestion, share_words
from dualign.judges.table import open_judge
from dualign.preference.pair_choice import PromptPairs
from dualign.preference.pair_lengths import TokenCounter
from dualign.preference.pair_samples import AskedPrompt, Sample
from dualign.preference.pairs_config import PairsStage
from dualign.terminal import wide_console

_Group = tuple[AskedPrompt, Sequence[Sample]]
"""Samples of a prompt that are judged together."""


def measure(prompts: Iterable[AskedPrompt], counter: TokenCounter) -> None:
    """Count the tokens of every sample."""
    for prompt in prompts:
        for sample in prompt.samples:
            sample.tokens = counter.count_all(sample.text)


def verify(prompts: Iterable[AskedPrompt]) -> Counter[str]:
    """Score samples by the verifiers of their questions; returns why samples are wrong, counted."""
    reasons = Counter[str]()
    for prompt in prompts:
        for sample in prompt.samples:
            sample.verdict = prompt.question.verdict(sample.reply.answer)
            if sample.verdict is not None:
                sample.score = float(sample.verdict.right)
                reasons.update([sample.verdict.reason] if sample.verdict.reason else [])
    return reasons


class PairJudge:
    """The judge of a stage. What it says is appended to a file, and isn't asked again."""

    def __init__(self, stage: PairsStage, work: Path, *, seed: int) -> None:
        assert stage.judge is not None, "a stage without a judge has nothing to ask it"
        self._stage, file = stage, SampleFile(work / "judgments.jsonl")
        self._judge = open_judge(stage.judge, file, label=stage.name, seed=seed)

    def score(self, prompts: Iterable[AskedPrompt]) -> dict[str, Any]:
        """Score the samples of each prompt; returns the record for run.json."""
        return self._score([(prompt, prompt.samples) for prompt in prompts])

    def keep_better(self, items: Sequence[PromptPairs]) -> dict[str, Any]:
        """Drop revisions that aren't better than their answers; returns the record for run.json."""
        record = self._score(
            [(item.prompt, (pair.chosen, pair.rejected)) for item in items for pair in item.pairs]
        )
        for item in items:
            obstacles = [pair.obstacle(judged=True) for pair in item.pairs]
            item.pairs = [p for p, why in zip(item.pairs, obstacles, strict=True) if not why]
            if obstacles and not item.pairs:
                item.reason = obstacles[0]
        return record

    def _score(self, groups: Sequence[_Group]) -> dict[str, Any]:
        groups = [(prompt, samples) for prompt, samples in groups if len(samples) > 1]
        questions = [_judged(self._stage, prompt, samples) for prompt, samples in groups]
        for (_, samples), ranking in zip(groups, self._judge.score(questions), strict=True):
            for sample, score in zip(samples, ranking.scores, strict=True):
                sample.score = score
        agreed = _agreement(samples for _, samples in groups)
        words = f"it agrees with the verifier in {share_words(agreed)}" if agreed["n"] else ""
        line = "; ".join(filter(None, (self._judge.in_words(), words)))
        wide_console().print(line, markup=False, highlight=False, soft_wrap=True)
        return self._judge.record() | ({"agreement": agreed} if agreed["n"] else {})


def _judged(stage: PairsStage, prompt: AskedPrompt, samples: Sequence[Sample]) -> JudgedQuestion:
    question = prompt.question
    shows_row = question.origin == "source" and stage.chosen is None
    return JudgedQuestion(
        key=f"{question.place}, {question.mode}",
        messages=question.messages,
        answers=tuple(sample.reply.answer for sample in samples),
        reference=question.reference if shows_row and question.reference else None,
    )


def _agreement(groups: Iterable[Sequence[Sample]]) -> dict[str, Any]:
    """Return how often the judge prefers the right one of a right and a wrong sample of a prompt."""
    comparisons = []
    for samples in groups:
        right = [sample for sample in samples if sample.verdict]
        wrong = [sample for sample in samples if sample.verdict is not None and not sample.verdict]
        comparisons += [_comparison(*pair) for pair in product(right, wrong)]
    return agreement(comparisons, [(True, False)] * len(comparisons))


def _comparison(first: Sample, second: Sample) -> Comparison:
    if first.score is None or second.score is None or first.score == second.score:
        return Comparison(better=None, reason="tie")
    return Comparison(better=0 if first.score > second.score else 1)
