"""The plots: what is drawn, in which colours, and that many of them can stand in one page."""

import re
from pathlib import Path

import pytest

from dualign.evaluation.scores import ModelScores
from dualign.report.plots import (
    COLORS,
    INK,
    MAX_POINTS,
    accuracy_plot,
    cost_plot,
    lengths_plot,
    loss_plot,
    reward_plot,
    row_lengths_plot,
)
from dualign.report.plots import _thinned as thinned
from dualign.report.runs import read_stage
from dualign.report.stages import training_sections

from .conftest import cell, write_stage

PNG = b"\x89PNG\r\n\x1a\n"


def _model(name: str) -> ModelScores:
    return ModelScores(model=name, tasks={"sums": {"think": cell(8, 10), "no_think": cell(1, 10)}})


def test_modes_have_their_colors_and_ink_follows_the_page() -> None:
    svg = accuracy_plot("p", "sums", [_model("base"), _model("sft")]).svg
    for mode in ("think", "no_think"):
        assert COLORS[mode].lower() in svg.lower()
    assert "currentColor" in svg
    assert INK not in svg
    assert svg.startswith("<svg") and svg.endswith("</svg>")


def test_ids_of_two_plots_differ_and_references_stay_within_a_plot() -> None:
    ids = []
    for name in ("first", "second"):
        svg = accuracy_plot(name, "sums", [_model("sft")]).svg
        own = set(re.findall(r'\bid="([^"]+)"', svg))
        used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
        assert used and used <= own
        ids.append(own)
    assert not ids[0] & ids[1]


def test_same_numbers_give_the_same_bytes() -> None:
    first, second = (cost_plot("p", "Time", {"sft": 3.0}, digits=0) for _ in range(2))
    assert (first.svg, first.png) == (second.svg, second.png)
    assert first.png.startswith(PNG)


@pytest.mark.parametrize("name", ["a$b$c", "$", "x" * 200, "<b>&", "a_b^c"])
def test_any_name_can_be_a_label(name: str) -> None:
    picture = accuracy_plot(
        "p", name, [ModelScores(model=name, tasks={name: {"think": cell(1, 2)}})]
    )
    assert picture.png.startswith(PNG)


def test_curves_are_drawn_from_one_step_from_one_mode_and_without_modes() -> None:
    plot = loss_plot("p", "sft", [{"step": 1, "loss": 1.0, "loss/think": 1.0}])
    assert COLORS["think"].lower() in plot.svg.lower()
    assert COLORS["no_think"].lower() not in plot.svg.lower()
    total = loss_plot("p", "sft", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
    assert COLORS[""].lower() in total.svg.lower()


def test_reward_plots_draw_both_modes() -> None:
    log = [
        {"step": s, f"rewards/margins/{m}": s * 0.1}
        for s in range(3)
        for m in ("think", "no_think")
    ]
    svg = reward_plot("p", "apo", log, "margins").svg.lower()
    assert COLORS["think"].lower() in svg and COLORS["no_think"].lower() in svg


def test_lengths_of_a_model_that_never_thinks_can_be_drawn() -> None:
    assert lengths_plot("p", "sums", {"base": [0, 0], "sft": [0]}).png.startswith(PNG)


def test_stages_that_took_no_time_can_be_drawn() -> None:
    assert cost_plot("p", "Time", {"merge": 0.0}, digits=0).png.startswith(PNG)


def test_long_curves_are_thinned_to_means() -> None:
    short = tuple((step, 1.0) for step in range(MAX_POINTS))
    assert thinned(short) == short
    long = tuple((step, float(step)) for step in range(1, 4 * MAX_POINTS + 1))
    found = thinned(long)
    assert len(found) == MAX_POINTS
    assert found[0] == (4, 2.5)  # the mean of 1, 2, 3, 4, at the last of them


@pytest.mark.parametrize("lengths", [[1], [259, 261], [3, 30_000]], ids=str)
def test_rows_of_any_length_can_be_drawn(lengths: list[int]) -> None:
    picture = row_lengths_plot("p", "rows", {"think": lengths, "no_think": lengths})
    assert picture.png.startswith(PNG)


def test_a_stage_of_rated_answers_shows_both_sides_by_their_names_and_the_kl(
    tmp_path: Path,
) -> None:
    log = [
        {
            "step": step,
            "loss": 0.5,
            "kl": 0.1 * step,
            "rewards/chosen/think": 0.2 * step,
            "rewards/rejected/think": -0.1 * step,
            "rewards/accuracies/think": 0.75,
        }
        for step in range(1, 5)
    ]
    rows = {"in": 4, "kept": 4, "dropped": {}, "desirable": 3, "undesirable": 1}
    stage = read_stage(write_stage(tmp_path, "kto", "preference", log=log, rows=rows))
    gallery, table = next(iter(training_sections([stage]))).blocks
    drawn = {picture.name: picture.svg for picture in gallery.pictures}
    assert set(drawn) == {"loss-kto", "rewards-kto", "accuracies-kto", "kl-kto"}
    assert "think, undesirable" in drawn["rewards-kto"]
    assert "rejected" not in drawn["rewards-kto"]
    assert ("kl", "0.100 to 0.400", "-") in table.rows
