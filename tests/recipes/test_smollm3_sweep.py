"""The recipe that searches for the mix of SmolLM3's last merge."""

import json
from pathlib import Path

import pytest

from dualign.merging.sweep.points import merge_at
from dualign.merging.sweep.search import grid_points
from dualign.recipe import load_recipe
from dualign.recipes.smollm3 import gsm_plus
from dualign.tasks.files import read_task
from dualign.tasks.table import load_problems

RECIPE = Path(gsm_plus.__file__).with_name("sweep.yaml")


def test_its_points_hold_the_published_merge_and_the_checkpoint_alone() -> None:
    stage = load_recipe(RECIPE, []).stage("sweep").config
    weights = [
        [
            source.parameters.values["weight"]
            for source in merge_at(stage.merge, point, "s").slices[0].sources
        ]
        for point in grid_points(stage)
    ]
    assert [0.9, 0.1] in weights and [1.0, 0.0] in weights
    merge = merge_at(stage.merge, {"a": 0.9}, "s")
    published = load_recipe(RECIPE.with_name("merge.yaml"), []).stage("merge").config
    assert merge.models() == [model.model for model in published.models]
    assert (merge.dtype, merge.config_from) == (published.dtype, published.config_from)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [("12", "12"), ("1,200", "1200"), ("0.25", "0.25"), ("-3", "-3"), ("None", None), ("", None), ("nan", None)],
)  # fmt: skip
def test_problems_with_a_number_for_an_answer_are_kept(answer: str, kept: str | None) -> None:
    row = {"question": "How many?", "answer": answer, "perturbation_type": "distraction insertion"}
    found = gsm_plus.task_rows([row])
    assert [entry["answer"] for entry in found] == ([] if kept is None else [kept])


def test_what_it_writes_is_a_task(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    gsm_plus.write_task(tmp_path, gsm_plus.task_rows(rows))
    problems = load_problems(read_task(tmp_path / "gsm-plus.yaml"))
    assert [problem.expected for problem in problems] == ["1", "2", "3"]
    assert problems[0].messages[0]["content"] == "0 + 1?\n\nPut your final answer within \\boxed{}."
    assert json.loads((tmp_path / "gsm-plus.jsonl").read_text().splitlines()[0])["id"] == "0"
