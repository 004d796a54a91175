"""The sentences: each follows from the numbers, and nothing is claimed within an interval."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from dualign.evaluation.scores import ModelScores, change
from dualign.report.conclusions import (
    Step,
    format_finding,
    length_finding,
    step_finding,
    steps,
    thinking_finding,
    training_findings,
)
from dualign.report.runs import ModelEvaluation, read_stage

from .conftest import Record, cell, write_stage


def _model(name: str, **tasks: tuple[int, int]) -> ModelEvaluation:
    """Tasks as (right with thinking, right without) of 100; no samples, so that nothing is paired."""
    return ModelEvaluation(scores=_scores(name, **tasks), samples=())


def _scores(name: str, **tasks: tuple[int, int]) -> ModelScores:
    cells = {t: {"think": cell(a, 100), "no_think": cell(b, 100)} for t, (a, b) in tasks.items()}
    return ModelScores(model=name, tasks=cells)


def test_change_within_the_interval_bought_nothing_measurable() -> None:
    step = Step(after=_model("apo", sums=(52, 30)), before=_model("sft", sums=(50, 31)))
    assert step_finding(step) == (
        "apo against sft: bought nothing measurable in accuracy. Both changes lie within their "
        "95 % intervals; the largest: sums think (+2.0 [-11.6, +15.5])."
    )


def _answered(name: str, right: str, tokens: Sequence[int] = ()) -> ModelEvaluation:
    """One task in think mode: a letter for each problem, r where it was right; tokens by turns."""
    rows: list[Record] = [
        {"task": "sums", "mode": "think", "id": i, "correct": letter == "r"}
        | ({"think_tokens": tokens[i % len(tokens)]} if tokens else {})
        for i, letter in enumerate(right)
    ]
    cells = {"sums": {"think": cell(right.count("r"), len(right))}}
    return ModelEvaluation(scores=ModelScores(model=name, tasks=cells), samples=tuple(rows))


def test_same_problems_are_compared_one_by_one() -> None:
    before, after = _answered("sft", "r" * 40 + "w" * 60), _answered("apo", "r" * 52 + "w" * 48)
    found = Step(after=after, before=before).changes()["sums", "think"]
    # 12 won, none lost: centre 12 / 102, spread 1.96 * sqrt(13 / 102 - (12 / 102)^2) / sqrt(102)
    assert (found.value, found.low, found.high) == pytest.approx((0.12, 0.0522, 0.1831), abs=1e-4)
    unpaired = Step(after=_model("apo", sums=(52, 0)), before=_model("sft", sums=(40, 0))).changes()
    assert not unpaired["sums", "think"].measurable


def test_several_answers_to_a_problem_are_one_observation() -> None:
    before, after = _answered("sft", "r" * 40 + "w" * 60), _answered("apo", "r" * 52 + "w" * 48)
    thrice = [
        ModelEvaluation(scores=m.scores, samples=tuple(row for row in m.samples for _ in range(3)))
        for m in (before, after)
    ]
    found, once = (
        Step(after=late, before=early).changes() for early, late in (thrice, (before, after))
    )
    assert found == once


def test_what_stays_after_the_correction_is_told_from_what_does_not() -> None:
    """6 won and none lost has p = 2 / 2^6 = 0.031, which two such comparisons make 0.062; beside 12
    won, 2 / 2^12, it is the larger of two and stays.
    """

    def both(name: str, first: str, second: str) -> ModelEvaluation:
        parts = {"sums": _answered(name, first), "cups": _answered(name, second)}
        rows = [{**row, "task": task} for task, part in parts.items() for row in part.samples]
        cells = {task: part.scores.tasks["sums"] for task, part in parts.items()}
        return ModelEvaluation(scores=ModelScores(model=name, tasks=cells), samples=tuple(rows))

    weak = "r" * 40 + "w" * 60
    sums, cups = ("sums", "think"), ("cups", "think")
    start = both("sft", weak, weak)
    six, twelve = "r" * 46 + "w" * 54, "r" * 52 + "w" * 48
    step = Step(after=both("apo", six, six), before=start)
    assert step.changes()[cups].measurable
    assert step.clear() == set()
    assert Step(after=both("apo", twelve, six), before=start).clear() == {sums, cups}
    assert Step(after=both("apo", six, weak), before=start).clear() == set()
    alone = Step(after=_answered("apo", six), before=_answered("sft", weak))
    assert alone.clear() == {sums}


def test_models_that_answered_other_problems_are_not_paired() -> None:
    before, after = _answered("sft", "r" * 40 + "w" * 60), _answered("apo", "r" * 52)
    found = Step(after=after, before=before).changes()["sums", "think"]
    expected = change(after.scores.score("sums", "think"), before.scores.score("sums", "think"))
    assert found == expected


def test_shorter_thinking_is_told_with_its_price() -> None:
    before = _answered("sft", "r" * 80 + "w" * 20, tokens=(40, 60))
    short = _answered("apo", "r" * 80 + "w" * 20, tokens=(20, 40))
    # ratio 0.6; after - 0.6 * before is -4 and 4: spread 1.96 * 4.02 / sqrt(100) / 50 = 0.0158
    assert length_finding(Step(after=short, before=before)) == (
        "apo against sft: cut thinking tokens by 40.0 % (95 % interval 38.4 to 41.6), with no measurable "
        "change of accuracy in think (+0.0 [-1.9, +1.9])."
    )
    costly = _answered("apo", "r" * 40 + "w" * 60, tokens=(20, 40))
    text = length_finding(Step(after=costly, before=before))
    assert text is not None
    assert "with a loss of accuracy in think: -40.0 [" in text
    text = length_finding(Step(after=before, before=short))
    assert text is not None
    assert text.startswith("sft against apo: raised thinking tokens by 66.7 % (95 % interval ")


def test_lengths_within_their_interval_are_not_told() -> None:
    before = _answered("sft", "r" * 20, tokens=(10, 90))
    assert length_finding(Step(after=_answered("apo", "r" * 20, (8, 91)), before=before)) is None


def test_lengths_of_other_problems_or_of_no_thinking_are_not_compared() -> None:
    before, after = (_answered("m", "r" * n, tokens=(40, 60)) for n in (20, 10))
    assert length_finding(Step(after=after, before=before)) is None
    nothing = _answered("base", "r" * 20, tokens=(0, 0))
    assert length_finding(Step(after=before, before=nothing)) is None
    assert length_finding(Step(after=_model("b", sums=(1, 1)), before=before)) is None


def test_gains_losses_and_the_rest_are_told_apart() -> None:
    after = _model("sft", sums=(90, 20), cups=(50, 30))
    before = _model("base", sums=(10, 22), cups=(50, 60))
    text = step_finding(Step(after=after, before=before))
    assert text.startswith("sft against base: gained points on sums think +80.0 [")
    assert "; lost points on cups no_think -30.0 [" in text
    assert text.endswith("; no measurable change in the other 2 of 4.")


def test_a_loss_alone_is_not_called_a_gain() -> None:
    step = Step(after=_model("apo", sums=(10, 30)), before=_model("sft", sums=(60, 30)))
    text = step_finding(step)
    assert text.startswith(
        "apo against sft: bought nothing measurable in accuracy; lost points on sums think -50.0 ["
    )
    assert "gained" not in text


def test_models_without_a_common_task_are_not_compared() -> None:
    step = Step(after=_model("apo", sums=(1, 1)), before=_model("sft", cups=(1, 1)))
    assert step_finding(step) == "apo against sft: no task was put to both, so nothing can be said."


def test_thinking_that_costs_or_does_nothing_is_said() -> None:
    text = thinking_finding(_scores("m", sums=(90, 20), cups=(20, 60), letters=(50, 49)))
    assert text is not None
    assert text.startswith("m: thinking adds points on sums +70.0 [")
    assert "; thinking costs points on cups -40.0 [" in text
    assert "; no measurable difference on letters (+1.0 [" in text


def test_thinking_is_not_judged_where_one_mode_is_missing() -> None:
    assert thinking_finding(ModelScores(model="m", tasks={"sums": {"think": cell(1, 2)}})) is None


def test_model_is_compared_with_its_parent_and_else_with_the_one_above(tmp_path: Path) -> None:
    stages = [
        read_stage(write_stage(tmp_path, "a", "sft")),
        read_stage(write_stage(tmp_path, "b", "sft", parents=("stage:base/model",))),
        read_stage(write_stage(tmp_path, "c", "preference", parents=("a", "pairs"))),
    ]
    models = [_model(name, sums=(1, 1)) for name in ("base", "a", "/runs/b", "c", "foreign")]
    found = [(step.after.scores.model, step.before.scores.model) for step in steps(models, stages)]
    assert found == [("a", "base"), ("/runs/b", "base"), ("c", "a"), ("foreign", "c")]


def test_worst_task_of_the_switch_is_named() -> None:
    tasks = {
        "sums": {"think": cell(1, 2, closed_rate=1.0), "no_think": cell(1, 2, leak_rate=0.02)},
        "cups": {"think": cell(1, 2, closed_rate=0.97), "no_think": cell(1, 2, leak_rate=0.0)},
    }
    assert format_finding(ModelScores(model="m", tasks=tasks)) == (
        "The switch in m: highest leak rate in no_think 2.0 % (sums), "
        "lowest share of closed think blocks 97.0 % (cups)."
    )
    assert format_finding(_scores("m", sums=(1, 1))) is None


def test_preference_stage_tells_its_held_out_margins(tmp_path: Path) -> None:
    log = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {
            "step": 2,
            "eval_loss": 0.625,
            "eval_rewards/margins/think": 0.25,
            "eval_rewards/accuracies/think": 0.75,
            "eval_rewards/margins/no_think": -0.5,
            "eval_rewards/accuracies/no_think": 0.4,
        },
    ]
    found = list(training_findings(read_stage(write_stage(tmp_path, "apo", "preference", log=log))))
    assert found[0] == "apo: validation loss 0.625."  # logged once
    later = write_stage(tmp_path, "apo-2", "preference", log=[*log, {"step": 4, "eval_loss": 0.5}])
    course = next(training_findings(read_stage(later)))
    assert course == "apo-2: validation loss 0.625 to 0.500, first to last logged."
    assert found[1].startswith(
        "apo: reward margin on held-out pairs at the end: think +0.250 (75.0 % of pairs right), "
        "no_think -0.500 (40.0 % of pairs right). The margin is measured against the reference"
    )
    rows = {"in": 4, "kept": 4, "dropped": {}, "desirable": 3, "undesirable": 1}
    rated = read_stage(write_stage(tmp_path, "kto", "preference", log=log, rows=rows))
    assert list(training_findings(rated))[1].startswith(
        "kto: reward margin on held-out answers, good over bad, at the end: think +0.250 (75.0 % of "
        "answers right), "
    )
    alone = write_stage(
        tmp_path, "simpo", "preference", log=log, metrics={"reference": None, "steps": 2}
    )
    assert list(training_findings(read_stage(alone)))[1].endswith(
        "The loss has no reference: the margin is of the policy's own log-probabilities."
    )


def test_stage_without_a_log_has_nothing_to_tell(tmp_path: Path) -> None:
    assert list(training_findings(read_stage(write_stage(tmp_path, "merged", "merge")))) == []
