"""Several answers to a problem: against enumeration and published figures, never the same formula."""

from collections import Counter
from itertools import combinations, product
from random import Random
from statistics import fmean

import pytest

from dualign.evaluation.metrics import gain, summarize, thinking_change
from dualign.evaluation.sampled import by_budget, majority, pass_at
from dualign.intervals import share_interval, t_95, wilson


def line(id_, *, correct, **keys):
    flags = {"leaked": False, "closed": True, "empty_think": False, "cut_in_think": False}
    lengths = {"think_tokens": 10, "answer_tokens": 2}
    return {"id": id_, "correct": correct, "finished": True, **flags, **lengths, **keys}


def lines(*problems):
    """Problems as texts: `rrw` has two right answers and a wrong one."""
    return [
        line(i, correct=letter == "r", sample=number)
        for i, letters in enumerate(problems)
        for number, letter in enumerate(letters)
    ]


@pytest.mark.parametrize("right", range(6))
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(right):
    answers = [True] * right + [False] * (5 - right)
    for tries in range(1, 6):
        draws = list(combinations(answers, tries))
        assert pass_at(5, right, tries) == pytest.approx(fmean(map(any, draws)))


def test_accuracy_is_the_mean_over_problems_and_pass_at_k_counts_up_to_all_answers():
    found = summarize(lines("rrrr", "rwww", "wwww"), "think")
    assert (found["accuracy"], found["n"], found["samples"]) == (pytest.approx(5 / 12), 3, 4)
    assert found["correct"] == 5
    shares = {tries: figure["value"] for tries, figure in found["pass_at"].items()}
    assert list(shares) == ["1", "2", "4"]
    # of the 6 pairs of rwww 3 hold its right answer
    assert list(shares.values()) == pytest.approx([5 / 12, (1 + 1 / 2 + 0) / 3, 2 / 3])
    assert list(summarize(lines("rrrrr"), "think")["pass_at"]) == ["1", "2", "4", "5"]
    single = summarize(lines("r", "w"), "think")
    assert not {"samples", "pass_at", "majority"} & single.keys()


def test_equal_answers_are_worth_no_more_than_one_of_them():
    once, often = (
        summarize(lines(*"rrrwww"), "think"),
        summarize(lines(*["rrrr", "wwww"] * 3), "think"),
    )
    assert often["accuracy_ci"] == once["accuracy_ci"] == list(wilson(0.5, 6))
    assert often["leak_rate_ci"] == once["leak_rate_ci"] == list(wilson(0.0, 6))
    all_right = summarize(lines("rr", "rr"), "think")["accuracy_ci"]
    assert all_right == list(wilson(1.0, 2))


@pytest.mark.parametrize(("problems", "shape"), [(30, (0.3, 0.3)), (30, (0.3, 3.0)), (12, (2, 2))])
def test_the_interval_of_clusters_holds_the_truth_in_19_of_20_cases(problems, shape):
    """Simulated: problems of different difficulty, 4 answers each. Wilson's over single answers,
    which takes them as independent, misses far more often where difficulties differ."""
    random = Random(1)
    truth, held, naive = shape[0] / sum(shape), 0, 0
    for _ in range(600):
        shares = []
        for _ in range(problems):
            chance = random.betavariate(*shape)
            shares.append(sum(random.random() < chance for _ in range(4)) / 4)
        low, high = share_interval(shares, 4 * problems)
        held += low <= truth <= high
        low, high = wilson(fmean(shares), 4 * problems)
        naive += low <= truth <= high
    assert 0.93 < held / 600 <= 0.99
    assert naive < held


def test_students_quantiles_are_those_of_the_tables():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 10: 2.228, 29: 2.045, 200: 1.972}
    for degrees, value in table.items():
        assert t_95(degrees) == pytest.approx(value, rel=2e-3)


def test_graded_scores_make_the_accuracy_and_have_the_interval_of_their_spread():
    graded = [line(i, correct=score == 1, score=score) for i, score in enumerate([0.4, 0.6] * 50)]
    found = summarize(graded, "think")
    assert found["accuracy"] == pytest.approx(0.5) and found["correct"] == 0
    # a normal interval by hand: standard deviation 0.1005, over 10, times 1.984
    assert found["accuracy_ci"] == pytest.approx([0.4801, 0.5199], abs=2e-4)
    plain = [line(i, correct=i % 2 == 0) for i in range(100)]
    scored = [line(i, correct=i % 2 == 0, score=float(i % 2 == 0)) for i in range(100)]
    assert summarize(scored, "think") == summarize(plain, "think")


def test_further_metrics_of_a_harness_are_means_over_their_problems():
    samples = [
        line(0, correct=True, scores={"loose": 1.0, "bleu": 40.0}),
        line(1, correct=False, scores={"loose": 0.0, "bleu": 20.0}),
        line(2, correct=False, scores={"loose": 1.0}),
    ]
    found = summarize(samples, "think")["metrics"]
    assert found["loose"]["value"] == pytest.approx(2 / 3)
    assert found["loose"]["ci"] == list(wilson(2 / 3, 3))
    assert found["bleu"]["value"] == 30 and found["bleu"]["ci"][0] < 20


def test_a_majority_is_that_of_the_votes_and_ties_share():
    def answers(votes):
        """`b` is right."""
        return [line(0, correct=vote == "b", vote=vote) for vote in votes]

    assert majority(answers("abb")) == 1.0
    assert majority(answers("aab")) == 0.0
    assert majority(answers("ab")) == 0.5
    assert majority(answers([None, None, "b"])) == 1.0
    assert majority(answers([None, None])) == 0.0
    for votes in product("abc", repeat=4):
        counts = Counter(votes).most_common()
        first = [vote for vote, count in counts if count == counts[0][1]]
        assert majority(answers(votes)) == pytest.approx(("b" in first) / len(first))
    voted = summarize([*answers("abb"), *(row | {"id": 1} for row in answers("aab"))], "think")
    assert voted["majority"]["value"] == 0.5


def test_changes_pair_the_means_of_problems():
    before, after = lines("rw", "ww", "rr"), lines("rr", "rw", "rr")
    found = gain(before, after)
    assert found.value == pytest.approx(1 / 3)
    # differences 0.5, 0.5, 0: standard deviation 0.2887, over sqrt(3), times 4.303
    assert (found.low, found.high) == pytest.approx((-0.3839, 1.0), abs=1e-3)
    one_answer = lines("r", "w", "r")  # no_think is asked once where it is greedy
    assert gain(one_answer, after).value == pytest.approx(0.5 / 3)
    halved = [row | {"think_tokens": 5} for row in after]
    assert thinking_change(before, halved).value == pytest.approx(-0.5)


def test_lines_of_budgets_are_kept_apart():
    samples = [
        line(0, correct=True),
        line(0, correct=False, budget=8),
        line(0, correct=True, budget=0),
    ]
    groups = by_budget(samples)
    assert {budget: len(rows) for budget, rows in groups.items()} == {None: 1, 8: 1, 0: 1}
    assert summarize(groups[None], "think")["accuracy"] == 1.0
