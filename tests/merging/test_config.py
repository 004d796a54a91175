"""What a merge stage may say."""

import math
import re

import pytest

from dualign.merging.config import MergeInput, MergeStage


def stage(*weights: float, **settings: object) -> MergeStage:
    models = tuple(
        MergeInput(model=f"m{place}", weight=weight) for place, weight in enumerate(weights)
    )
    return MergeStage(name="merged", models=models, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "key", "message"),
    [
        (stage(), "models", "at least one model, found none"),
        (stage(0.0, 0.0), "models", r"a weight other than 0, found \[0.0, 0.0\]"),
        (stage(1.0, -1.0), "models", "add up to 0, so they can't be normalized"),
        (stage(0.1, 0.2, -0.3), "models", "add up to 0, so they can't be normalized"),
        (stage(1.0, math.nan), "models.1.weight", "expected a finite number, found nan"),
        (stage(1.0, config_from="x"), "config_from", "expected one of m0, found 'x'"),
    ],
)
def test_impossible_weights_and_donors_are_problems(
    made: MergeStage, key: str, message: str
) -> None:
    ((found_key, found),) = made.problems()
    assert found_key == key
    assert re.search(message, found)


def test_a_model_listed_twice_is_a_problem() -> None:
    models = (MergeInput(model="a", weight=0.5), MergeInput(model="a", weight=0.2))
    ((key, message),) = MergeStage(name="merged", models=models).problems()
    assert (key, message) == (
        "models",
        "'a' is listed more than once: list it once with its whole weight",
    )


@pytest.mark.parametrize(
    "made",
    [
        stage(1.0),
        stage(0.9, 0.1),
        stage(2.0, -1.0),
        stage(1.0, -1.0, normalize=False),
        stage(0.0, 1.0),
        stage(1.0, 1.0, config_from="m1"),
    ],
)
def test_possible_stages_have_no_problems(made: MergeStage) -> None:
    assert made.problems() == []
