"""Two models on the same problems: what each solves that the other doesn't."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualign.evaluation.sampled import Sample, by_budget, has_value, problem_means
from dualign.evaluation.scores import Change, mean_of, paired_change

Answers = Mapping[tuple[str, str], Mapping[str, float]]
"""(task, mode) -> problem -> what its answer is worth: 0 or 1, or a mean of several answers"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One model against another in one mode."""

    won: int
    """problems that it alone solves, or more often"""
    lost: int
    """problems that the other alone solves, or more often"""
    n: int
    change: Change
    """of the accuracy, the mean of the tasks, with its paired 95 % interval"""

    def entry(self) -> dict[str, Any]:
        """Return it for experiment.json."""
        change = self.change
        counts = {"won": self.won, "lost": self.lost, "n": self.n}
        return {**counts, "value": change.value, "ci": [change.low, change.high]}


def answers_of(samples: Sequence[Sample], model: str) -> Answers:
    """Return what a model of an evaluation got right."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in by_budget(samples)[None]:
        if sample["model"] == model and has_value(sample):
            groups.setdefault((sample["task"], sample["mode"]), []).append(sample)
    return {
        key: {str(problem): value for problem, value in problem_means(group).items()}
        for key, group in groups.items()
    }


def compare(before: Answers, after: Answers, mode: str) -> Comparison | None:
    """Compare two models in a mode, on the problems that both answered; None without any."""
    changes, won, lost, n = [], 0, 0, 0
    for key, answers in after.items():
        common = [problem for problem in answers if problem in before.get(key, {})]
        if key[1] != mode or not common:
            continue
        earlier = [before[key][problem] for problem in common]
        later = [answers[problem] for problem in common]
        changes.append(paired_change(earlier, later))
        won += sum(b > a for a, b in zip(earlier, later, strict=True))
        lost += sum(a > b for a, b in zip(earlier, later, strict=True))
        n += len(common)
    if not changes:
        return None
    return Comparison(won=won, lost=lost, n=n, change=mean_of(changes))
