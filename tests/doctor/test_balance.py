"""Modes and sides of pairs are weighed by tokens."""

from collections import Counter

from dualign.data.accounting import Tally
from dualign.doctor.balance import Sides, balance_faults, side_faults


def tally(mode: str, rows: int, supervised: int, source: str = "made") -> Tally:
    return Tally(
        source=source,
        mode=mode,
        kept=rows,
        dropped=Counter(),
        lengths=[10] * rows,
        supervised=supervised,
    )


def codes(tallies: list[Tally], weights: dict[str, float] | None = None) -> list[str]:
    return [fault.code for fault in balance_faults(tallies, weights or {}, trained=True)]


def test_modes_are_weighed_by_tokens_and_not_by_rows() -> None:
    equal_rows = [tally("think", 50, 9_500), tally("no_think", 50, 500)]
    assert codes(equal_rows) == ["mode_imbalance"]
    equal_tokens = [tally("think", 5, 500), tally("no_think", 95, 500)]
    assert codes(equal_tokens) == []


def test_a_tenth_of_the_tokens_is_just_enough() -> None:
    assert codes([tally("think", 1, 900), tally("no_think", 1, 100)]) == []
    assert codes([tally("think", 1, 901), tally("no_think", 1, 99)]) == ["mode_imbalance"]


def test_the_weight_of_a_source_counts() -> None:
    rows = [tally("think", 1, 900, "long"), tally("no_think", 1, 100, "short")]
    assert codes(rows, {"short": 0.5}) == ["mode_imbalance"]
    assert codes([tally("think", 1, 950, "long"), rows[1]], {"short": 2.0}) == []


def test_one_mode_alone_is_a_warning_only_where_a_stage_trains_on_it() -> None:
    for trained, severity in ((True, "warning"), (False, "info")):
        (fault,) = balance_faults([tally("think", 3, 30)], {}, trained=trained)
        assert (fault.code, fault.severity) == ("one_mode", severity)


def test_pairs_of_which_one_side_is_longer_are_told() -> None:
    assert [fault.code for fault in side_faults(Sides(chosen=201, rejected=100))] == ["length_bias"]
    assert list(side_faults(Sides(chosen=200, rejected=100))) == []
    assert [fault.code for fault in side_faults(Sides(chosen=1, rejected=100))] == ["length_bias"]
