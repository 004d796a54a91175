"""Which samples of a prompt become pairs, and what their lengths say."""

import random
from collections import Counter
from typing import Any

import pytest

from dualign.generation.thinking import Reply
from dualign.preference.pair_choice import PromptPairs, choose, compare, count_outcomes
from dualign.preference.pair_lengths import length_figures, rank_biserial
from dualign.preference.pair_questions import PairQuestion
from dualign.preference.pair_samples import AskedPrompt, Sample, Side
from dualign.preference.pairs_config import PairsStage
from dualign.verifiers.base import RIGHT, wrong


def sample(text: str, tokens: int, right: bool | None = None, score: float | None = None) -> Sample:
    reply = Reply(
        thinking=None, answer=text, closed=False, leaked=False, empty=False, cut_in_think=False
    )
    verdict = None if right is None else RIGHT if right else wrong("another number")
    known = score if score is not None or right is None else float(right)
    return Sample(reply=reply, writer="tiny", verdict=verdict, score=known, tokens=tokens)


def asked(name: str, first: list[Sample], second: list[Sample] | None = None) -> AskedPrompt:
    messages = ({"role": "user", "content": name},)
    question = PairQuestion(
        source="t", origin="task", id=name, place=name, messages=messages, mode="no_think"
    )
    return AskedPrompt(
        question=question,
        first=Side(samples=first),
        second=None if second is None else Side(samples=second),
    )


def stage(**keys: Any) -> PairsStage:
    return PairsStage(name="pairs", model="m", tasks=("t.yaml",), **keys)


def chosen_of(stage: PairsStage, *prompts: AskedPrompt, seed: int = 0) -> list[PromptPairs]:
    items = compare(prompts)
    choose(stage, items, seed=seed)
    return items


def texts(stage: PairsStage, *prompts: AskedPrompt, seed: int = 0) -> list[tuple[str, str]]:
    return [
        (pair.chosen.reply.answer, pair.rejected.reply.answer)
        for item in chosen_of(stage, *prompts, seed=seed)
        for pair in item.pairs
    ]


def test_matched_takes_the_pair_with_the_smallest_difference_in_length() -> None:
    samples = [sample("r9", 9, True), sample("r3", 3, True), sample("w4", 4, False)]
    samples += [sample("w20", 20, False)]
    assert texts(stage(length="matched"), asked("q", samples)) == [("r3", "w4")]
    both = texts(stage(length="matched", pairs_per_prompt=2), asked("q", samples))
    assert both == [("r3", "w4"), ("r9", "w20")]
    free = {texts(stage(), asked("q", samples), seed=seed)[0] for seed in range(40)}
    assert free == {("r3", "w4"), ("r3", "w20"), ("r9", "w4"), ("r9", "w20")}


def test_best_worst_takes_the_widest_gap_and_breaks_ties_at_random() -> None:
    samples = [sample(f"s{n}", 5, score=float(n)) for n in range(5)] + [
        sample("also 0", 5, score=0)
    ]
    picked = {texts(stage(choose="best_worst"), asked("q", samples), seed=n)[0] for n in range(20)}
    assert picked == {("s4", "s0"), ("s4", "also 0")}
    matched = [*samples[:5], sample("long 0", 50, score=0)]
    for seed in range(5):
        pairs = texts(stage(choose="best_worst", length="matched"), asked("q", matched), seed=seed)
        assert pairs == [("s4", "s0")]


def test_no_sample_comes_twice_and_no_pair_of_texts_either() -> None:
    samples = [sample("3", 1, True), sample("3", 1, True), sample("4", 1, False)]
    samples += [sample("4", 1, False), sample("5", 1, False)]
    pairs = texts(stage(pairs_per_prompt=4), asked("q", samples))
    assert sorted(pairs) == [("3", "4"), ("3", "5")]


def test_two_texts_never_stand_against_each_other_in_both_orders() -> None:
    strong, weak = ([sample(text, 1) for text in "34"] for _ in range(2))
    two_models = stage(rejected_model="n", length="matched", pairs_per_prompt=4)
    for seed in range(8):
        pairs = texts(two_models, asked("q", strong, weak), seed=seed)
        assert len(pairs) == 1 and set(pairs[0]) == {"3", "4"}


def test_balanced_drops_the_fewest_pairs_until_chosen_is_not_longer_on_average() -> None:
    """Differences +10, +3, +1, -4: the sum is 10, and taking +10 away is enough."""
    differences = {"a": 10, "b": 3, "c": 1, "d": -4}
    prompts = [
        asked(name, [sample("r", 20 + more, True), sample("w", 20, False)])
        for name, more in differences.items()
    ]
    chosen = chosen_of(stage(length="balanced"), *prompts)
    assert [item.prompt.question.id for item in chosen if item.pairs] == ["b", "c", "d"]
    assert count_outcomes(chosen, {}) == {("t", "no_think"): Counter(kept=3, longer=1)}
    rng = random.Random(0)
    for _ in range(20):
        prompts = [
            asked(str(n), [sample("r", rng.randint(1, 60), True), sample("w", 20, False)])
            for n in range(rng.randint(1, 12))
        ]
        kept = [
            pair for item in chosen_of(stage(length="balanced"), *prompts) for pair in item.pairs
        ]
        assert sum(pair.longer for pair in kept) <= 0


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ([("a", True), ("b", True)], None, "all_right"),
        ([("a", False), ("b", False)], None, "all_wrong"),
        ([("a", None)], [("a", None)], "identical"),
        ([("a", False)], [("b", True)], "not_better"),
        ([("a", True)], [("b", True)], "all_right"),
        ([("a", None)], [], "malformed"),
    ],
)
def test_a_prompt_without_a_pair_is_counted_by_its_reason(
    first: list[tuple[str, bool | None]], second: list[tuple[str, bool | None]] | None, reason: str
) -> None:
    sides = [
        None if side is None else [sample(t, 1, right) for t, right in side]
        for side in (first, second)
    ]
    assert sides[0] is not None
    chosen = chosen_of(stage(), asked("q", sides[0], sides[1]))
    assert [item.reason for item in chosen] == [reason]


def test_the_correlation_is_that_of_signed_ranks() -> None:
    rng = random.Random(1)
    for _ in range(10):
        differences = [rng.randint(1, 9) * rng.choice((-1, 1)) for _ in range(30)]
        sizes = list(map(abs, differences))
        ranks = [sum(o < s for o in sizes) + (sizes.count(s) + 1) / 2 for s in sizes]
        signed = sum(rank if d > 0 else -rank for rank, d in zip(ranks, differences, strict=True))
        assert rank_biserial(differences) == pytest.approx(signed / (30 * 31 / 2))
    assert rank_biserial([0, 0]) == 0
    assert rank_biserial([5]) == 1 and rank_biserial([-1, -7]) == -1


def test_figures_warn_where_length_tells_the_sides_apart_and_chance_does_not() -> None:
    figures = length_figures([(20, 10)] * 18 + [(10, 20)] * 2)
    assert (figures["chosen"], figures["rejected"], figures["chosen_longer"]) == (19, 11, 0.9)
    assert figures["correlation"] == 0.8
    assert "learns to write longer answers first. Set length: matched" in figures["warning"]
    shorter = length_figures([(10, 20)] * 20)
    assert "rejected is longer almost as a rule (correlation -1.00)" in shorter["warning"]
    assert "warning" not in length_figures(
        [(20, 10), (21, 10), (10, 30)]
    )  # three pairs say nothing
    assert "warning" not in length_figures([(10, 10)] * 50)
