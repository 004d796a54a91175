"""What the start model says of the pairs: figures worked by hand, and when the log warns."""

import pytest

from dualign.preference.start_margins import start_figures, start_warning


def test_figures_of_the_start_model() -> None:
    assert start_figures([0.5, -0.25, -1.0, -1.25]) == {
        "start/pairs": 4,
        "start/chosen_likelier": 0.25,
        "start/margin": -0.5,
    }


# With 40 pairs, 1.64 standard errors are 0.13: a share of 0.37 is the last that warns.
@pytest.mark.parametrize(
    ("losses", "likelier", "expected"),
    [
        (["sigmoid"], 14, "65% of 40 pairs (0.30 nats a token): it didn't write the chosen ones"),
        (["sigmoid"], 15, None),
        (["sigmoid", "ipo"], 10, "sigmoid, ipo compares the two alone"),
        (["sigmoid", "sft"], 10, None),
        (["apo_zero"], 0, None),
        (["apo_down"], 10, "apo_down lowers them further"),
        (["apo_down"], 30, None),
    ],
)
def test_the_log_warns_where_the_loss_may_lower_what_is_unlikely_already(
    losses: list[str], likelier: int, expected: str | None
) -> None:
    margin = -0.3
    rest = (40 * margin - likelier) / (40 - likelier)
    figures = start_figures([1.0] * likelier + [rest] * (40 - likelier))
    warning = start_warning(losses, figures)
    assert (warning is None) if expected is None else (expected in (warning or ""))
