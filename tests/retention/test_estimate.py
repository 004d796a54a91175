"""The plan says what retain asks, and what so few problems can show."""

from pathlib import Path

import pytest

from dualign.evaluation.scores import paired_change
from dualign.recipe import load_recipe
from dualign.retention.estimate import least_fall, retention_notes
from tests.retention.conftest import Write, retain


@pytest.mark.parametrize(
    ("steps", "every", "times"),
    [
        (10, 3, "5 times"),
        (9, 3, "4 times"),
        (None, 3, "every 3 steps and at"),
        (9, None, "at the s"),
    ],
)
def test_the_plan_counts_answers_and_measurements(
    write: Write, task_file: Path, steps: int | None, every: int | None, times: str
) -> None:
    block = retain(task_file, prompts=["1+1?"], **({"every": every} if every else {}))
    stage = load_recipe(write("run", retain=block), []).stages[0].config
    asked, told = retention_notes(stage, steps)
    assert "10 answers of 30 tokens at most" in asked, "4 problems and a prompt, in both modes"
    assert f", {times}" in asked
    assert "4 problems tell a fall of 100% from luck" in told


def test_the_least_fall_is_measurable_and_one_problem_less_is_not() -> None:
    assert least_fall(20) == 0.25
    lost = round(least_fall(100) * 100)
    before = [True] * 100
    falls = [[False] * count + [True] * (100 - count) for count in (lost, lost - 1)]
    assert [paired_change(before, after).measurable for after in falls] == [True, False]
