"""What is known of samples before pairs are chosen: their lengths, and whether they are right."""

from collections import Counter
from collections.abc import Iterable

from dualign.preference.pair_lengths import TokenCounter
from dualign.preference.pair_samples import AskedPrompt


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
