"""Which samples of a prompt become a pair: what may stand against what, and which of these are taken."""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from dualign.preference.pair_samples import AskedPrompt, Sample
from dualign.preference.pairs_config import PairsStage

_OBSTACLES = (
    *("not_better", "all_wrong", "all_right", "identical"),
    *("unjudged", "tie", "judge_disagrees", "verifier_disagrees"),
)
"""Why two samples make no pair. A prompt without a pair is counted by the last one of its samples'."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """Two samples of a prompt that may be a pair."""

    chosen: Sample
    rejected: Sample

    @property
    def gap(self) -> float:
        """How much better the chosen one is; 0 where samples aren't scored."""
        return (self.chosen.score or 0.0) - (self.rejected.score or 0.0)

    @property
    def longer(self) -> int:
        """How many tokens the chosen one is longer."""
        return self.chosen.tokens - self.rejected.tokens

    def obstacle(self, *, judged: bool) -> str:
        """Return why they make no pair in this order, in a word that can be counted; "" if they do.

        Args:
            judged: the scores are a judge's.
        """
        if judged:
            return self._judged_obstacle()
        chosen, rejected = self.chosen, self.rejected
        if chosen.score is not None and rejected.score is not None:
            if chosen.score == rejected.score:
                return "all_right" if chosen.verdict else "all_wrong"
            if chosen.score < rejected.score:
                return "not_better"
        return "identical" if chosen.text == rejected.text else ""

    def _judged_obstacle(self) -> str:
        chosen, rejected = self.chosen, self.rejected
        if chosen.text == rejected.text:
            return "identical"
        if chosen.score is None or rejected.score is None:
            return "unjudged"
        if chosen.score == rejected.score:
            return "tie"
        if chosen.score < rejected.score:
            return "judge_disagrees"
        is_turned = rejected.verdict and chosen.verdict is not None and not chosen.verdict
        return "verifier_disagrees" if is_turned else ""


@dataclass(kw_only=True, slots=True)
class PromptPairs:
    """The pairs of a prompt; `reason` says why there are none."""

    prompt: AskedPrompt
    pairs: list[Candidate]
    reason: str = ""


def compare(prompts: Iterable[AskedPrompt], *, judged: bool = False) -> list[PromptPairs]:
    """Return each prompt with all pairs that its samples may make.

    Args:
        judged: the scores of samples are a judge's.
    """
    return [_compare(prompt, judged=judged) for prompt in prompts]


def choose(stage: PairsStage, prompts: Sequence[PromptPairs], *, seed: int) -> None:
    """Leave each prompt the pairs that it gives: no sample twice, and with `length` no longer ones on average."""
    for item in prompts:
        rng = random.Random(f"{seed}:{item.prompt.key}")
        item.pairs = _take(stage, item.pairs, rng)
    if stage.length is not None:
        _balance(prompts)


def _compare(prompt: AskedPrompt, *, judged: bool) -> PromptPairs:
    first = prompt.first.samples
    second = first if prompt.second is None else prompt.second.samples
    candidates, obstacles = [], set()
    for chosen, rejected in product(first, second):
        candidate = Candidate(chosen=chosen, rejected=rejected)
        if obstacle := candidate.obstacle(judged=judged):
            obstacles.add(obstacle)
        else:
            candidates.append(candidate)
    if judged and len(prompt.samples) < 2:
        obstacles.clear()  # there is nothing that a judge could compare
    if candidates:
        return PromptPairs(prompt=prompt, pairs=candidates)
    reason = max(obstacles, key=_OBSTACLES.index) if obstacles else prompt.fault
    return PromptPairs(prompt=prompt, pairs=[], reason=reason)


def _take(stage: PairsStage, candidates: list[Candidate], rng: random.Random) -> list[Candidate]:
    """Return the best pairs by the stage's choice, ties broken at random, each text pair once.

    Not the other way round either: a strong and a weak model may write the same two texts.
    """
    order = rng.sample(candidates, len(candidates))
    order.sort(
        key=lambda pair: (
            -pair.gap if stage.choose == "best_worst" else 0.0,
            abs(pair.longer) if stage.length == "matched" else 0,
        )
    )
    taken: list[Candidate] = []
    used: set[int] = set()
    texts: set[tuple[tuple[str | None, str], ...]] = set()
    for pair in order:
        samples, text = {id(pair.chosen), id(pair.rejected)}, (pair.chosen.text, pair.rejected.text)
        is_new = not samples & used and not texts & {text, text[::-1]}
        if len(taken) < stage.pairs_per_prompt and is_new:
            taken.append(pair)
            used |= samples
            texts.add(text)
    return taken


def _balance(prompts: Sequence[PromptPairs]) -> None:
    """Take away pairs with a longer chosen answer until, in each mode, chosen isn't longer on average.

    As few pairs go as can: those with the largest difference, and last the one that is just enough.
    """
    for mode in dict.fromkeys(item.prompt.mode for item in prompts):
        pairs = [
            (item, pair) for item in prompts if item.prompt.mode == mode for pair in item.pairs
        ]
        excess = sum(pair.longer for _, pair in pairs)
        longer = sorted((p for p in pairs if p[1].longer > 0), key=lambda p: p[1].longer)
        while excess > 0:
            enough = bisect_left(longer, excess, key=lambda p: p[1].longer)
            item, pair = longer.pop(min(enough, len(longer) - 1))
            item.pairs.remove(pair)
            item.reason = item.reason if item.pairs else "longer"
            excess -= pair.longer


def count_outcomes(
    prompts: Sequence[PromptPairs], passed: Mapping[tuple[str, str], Counter[str]]
) -> dict[tuple[str, str], Counter[str]]:
    """Return for each (source, mode) how many prompts were `kept`, or why they weren't.

    Args:
        passed: the same of questions that weren't asked.
    """
    counts = {key: Counter(reasons) for key, reasons in passed.items()}
    for item in prompts:
        key = (item.prompt.question.source, item.prompt.mode)
        counts.setdefault(key, Counter())[item.reason or "kept"] += 1
    return counts


def rows_of(prompts: Sequence[PromptPairs]) -> Iterator[dict[str, object]]:
    """Yield the rows of pairs.jsonl."""
    for item in prompts:
        question = item.prompt.question
        for pair in item.pairs:
            yield {
                "prompt": [dict(turn) for turn in question.messages],
                "chosen": [_message(pair.chosen)],
                "rejected": [_message(pair.rejected)],
                "mode": question.mode,
                question.origin: question.source,
                "id": question.id,
            }


def _message(sample: Sample) -> dict[str, str]:
    trace, answer = sample.text
    message = {"role": "assistant", "content": answer}
    return message if trace is None else {**message, "reasoning_content": trace}
