"""Modes and sides of pairs are weighed by tokens."""

from typing import Any

from dualign.doctor.balance import PairTokens, Verdicts, check_modes, check_pair_lengths


def group(mode: str, rows: int, supervised: int) -> dict[str, Any]:
    return {"source": "made", "mode": mode, "examples": rows, "supervised_tokens": supervised}


def codes(*by: dict[str, Any]) -> list[str]:
    return [fault.code for fault in check_modes(by, trained=True)]


def test_modes_are_weighed_by_tokens_and_not_by_rows() -> None:
    assert codes(group("think", 50, 9_500), group("no_think", 50, 500)) == ["mode_imbalance"]
    assert codes(group("think", 5, 500), group("no_think", 95, 500)) == []


def test_a_tenth_of_the_tokens_is_just_enough() -> None:
    assert codes(group("think", 1, 900), group("no_think", 1, 100)) == []
    assert codes(group("think", 1, 901), group("no_think", 1, 99)) == ["mode_imbalance"]


def test_the_modes_of_several_sources_are_added_up() -> None:
    small = [group("no_think", 1, 60), group("no_think", 1, 60)]
    assert codes(group("think", 1, 880), *small) == []


def test_one_mode_alone_is_a_warning_only_where_a_stage_trains_on_it() -> None:
    for trained, severity in ((True, "warning"), (False, "info")):
        (fault,) = check_modes([group("think", 3, 30)], trained=trained)
        assert (fault.code, fault.severity) == ("one_mode", severity)


def test_pairs_of_which_one_side_is_longer_are_told() -> None:
    assert [fault.code for fault in check_pair_lengths(PairTokens(chosen=201, rejected=100))] == [
        "length_bias"
    ]
    assert list(check_pair_lengths(PairTokens(chosen=200, rejected=100))) == []
    assert [fault.code for fault in check_pair_lengths(PairTokens(chosen=1, rejected=100))] == [
        "length_bias"
    ]


def test_answers_of_one_verdict_are_an_error_and_those_of_one_mode_a_warning() -> None:
    def of(*counts: tuple[str, int, int]) -> list[tuple[str, str]]:
        verdicts = Verdicts()
        for mode, good, bad in counts:
            for desirable in (*[True] * good, *[False] * bad):
                verdicts.add(mode, desirable)
        return [(finding.code, finding.severity) for finding in verdicts.check()]

    assert of() == of(("think", 2, 1), ("no_think", 1, 3)) == of(("think", 2, 1)) == []
    assert of(("think", 2, 0), ("no_think", 3, 0)) == [("one_verdict", "error")]
    assert of(("think", 0, 2)) == [("one_verdict", "error")]
    assert of(("think", 2, 0), ("no_think", 1, 3)) == [("one_verdict", "warning")]
