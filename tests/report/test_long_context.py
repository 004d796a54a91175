"""The section on long prompts: the curve of each model, its forms and the depths of needles."""

from pathlib import Path

from dualign.report.blocks import Gallery, Section, Table
from dualign.report.evaluation import evaluation_sections
from dualign.report.long_context import _depth_cells
from dualign.report.runs import evaluations_of, read_stage

from .conftest import Record, cell, write_evaluation

FORMS = ("needle", "tracking")
LENGTHS = (1024, 4096)


def _model(name: str, scores: tuple[float, float]) -> Record:
    cells = {"think": cell(50, 100), "no_think": cell(50, 100)}
    points = [
        {
            "length": length,
            "score": score,
            "ci": [score - 0.05, score + 0.05],
            "n": 40,
            "forms": {"needle": 1.0, "tracking": 2 * score - 1},
            "beyond": length > 2048,
        }
        for length, score in zip(LENGTHS, scores, strict=True)
    ]
    curve = {"language": "en", "window": 2048, "points": points, "effective": None}
    tasks = {f"long:{form}@{length}/en": cells for form in FORMS for length in ("1k", "4k")}
    curves = [{**curve, "mode": mode} for mode in ("think", "no_think")]
    return {"model": name, "tasks": tasks, "length_curves": curves}


def _sections(folder: Path) -> dict[str, Section]:
    models = [_model("base", (0.9, 0.6)), _model("sft", (0.8, 0.55))]
    stages = [read_stage(write_evaluation(folder, "far", models))]
    sections = evaluation_sections(stages, evaluations_of(stages))
    return {section.name: section for section in sections}


def test_the_curve_and_the_forms_of_the_last_model_are_shown(tmp_path: Path) -> None:
    section = _sections(tmp_path)["long-context"]
    lengths, forms = (block for block in section.blocks if isinstance(block, Table))
    assert lengths.columns == ("language", "model", "mode", "1k", "4k", "effective")
    assert lengths.rows[0] == (
        "en", "base", "think", "90.0 [85, 95]", "60.0 [55, 65] *", "< 1k",
    )  # fmt: skip
    assert forms.rows[:2] == (
        ("en", "needle", "think", "100.0", "100.0"),
        ("en", "needle", "no_think", "100.0", "100.0"),
    )
    assert ("en", "tracking", "think", "60.0", "10.0") in forms.rows
    gallery = next(block for block in section.blocks if isinstance(block, Gallery))
    assert [picture.name for picture in gallery.pictures] == [
        "long-context-0-en",
        "long-context-1-en",
    ]
    assert all(picture.svg.startswith("<svg") for picture in gallery.pictures)


def test_a_needle_counts_at_its_depth_and_length() -> None:
    samples = [
        {"mode": "think", "depth": 0.0, "length": 1024, "correct": True, "score": 1.0},
        {"mode": "think", "depth": 0.19, "length": 1024, "correct": False, "score": 0.5},
        {"mode": "think", "depth": 1.0, "length": 4096, "correct": True},
        {"mode": "no_think", "depth": 0.5, "length": 1024, "correct": True},
        {"mode": "think", "length": 1024, "correct": True},
    ]
    assert _depth_cells(samples, "think") == {(0, 1024): [1.0, 0.5], (4, 4096): [1.0]}
