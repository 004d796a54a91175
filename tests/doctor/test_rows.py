"""Every planted defect of a row is found, at its row; clean rows of every kind raise no alarm."""

import pytest

from dualign.doctor.findings import Findings
from tests.doctor import clean
from tests.doctor.conftest import Examine
from tests.doctor.defective_rows import (
    PLANTED,
    Planted,
    no_think_row,
    pair_row,
    rated_row,
    think_row,
    tool_row,
)

PLACE = 2


@pytest.mark.parametrize("planted", PLANTED, ids=lambda item: item.make.__name__)
def test_a_planted_defect_is_found_at_its_row_and_nothing_else_is(
    planted: Planted, examine: Examine
) -> None:
    rows = {
        "pair": [pair_row(3), pair_row(4)],
        "rated": [rated_row(3, True), rated_row(4, False)],
        "conversation": [think_row(3), no_think_row(4)],
    }[planted.row_type]
    if planted.template != "dualign":
        rows = [no_think_row(3), no_think_row(4)]
    rows.append(planted.make(rows[0]))
    findings, account = examine(
        {"rows": rows}, row_type=planted.row_type, template=planted.template
    )
    found = [(finding.code, finding.row) for finding in findings.all() if finding.row is not None]
    assert (planted.code, PLACE) in found
    assert {row for _, row in found} == {PLACE}, "the clean rows are clean"
    assert account["in"] == 3 == account["kept"] + sum(account["dropped"].values())


def test_a_flag_in_a_word_is_an_error_where_the_template_takes_it_for_the_switch(
    examine: Examine,
) -> None:
    row = next(planted for planted in PLANTED if planted.code == "flag_in_word").make({})
    for template, severity in (("dualign", "warning"), ("smollm3-training", "error")):
        findings, _ = examine({"rows": [row]}, template=template)
        assert [
            finding.severity for finding in findings.all() if finding.code == "flag_in_word"
        ] == [severity]


def test_rows_that_only_look_odd_are_clean(examine: Examine) -> None:
    rows = [think_row(), no_think_row(), tool_row()]
    rows[0]["messages"][0]["content"] = "Is docs/thinking.md or /thinker a flag, and [1, 2] < [3]?"
    rows[1]["messages"][1]["content"] = "a < b, c <| d, #include <filename.h>, ## Response"
    findings, account = examine({"rows": rows})
    assert _alarms(findings) == 0
    assert account["kept"] == 3


@pytest.mark.parametrize("hundreds", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_clean_rows_of_every_kind_raise_no_alarm(examine: Examine, hundreds: int) -> None:
    alarms = rows = 0
    kinds = (("conversation", clean.SFT, 80), ("pair", clean.PAIRS, 10), ("rated", clean.RATED, 10))
    for row_type, makers, count in kinds:
        made = clean.clean(makers, count * hundreds)
        findings, account = examine(made, row_type=row_type, max_tokens=8192)
        alarms += _alarms(findings)
        rows += account["in"]
        assert account["kept"] == account["in"]
    assert rows == 100 * hundreds
    assert alarms < 0.005 * rows


def _alarms(findings: Findings) -> int:
    about_rows = [finding for finding in findings.all() if finding.row is not None]
    return sum(finding.severity != "info" for finding in about_rows)
