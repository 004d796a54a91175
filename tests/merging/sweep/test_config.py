"""What a sweep in a recipe may say, and what is refused with file, line and key."""

from pathlib import Path
from typing import Any

import pytest

from dualign.config import Document, parse
from dualign.errors import ConfigError
from dualign.merging.sweep.config import Range, SweepStage
from dualign.merging.sweep.points import merge_at
from dualign.recipe import load_recipe, references

PAIR = {"models": [{"model": "a", "weight": "$a"}, {"model": "b", "weight": "1 - $a"}]}
SCORE = {"tasks": ["t.yaml"]}
GOOD = {"name": "s", "merge": PAIR, "vary": {"a": [0.5, 0.9]}, "score": SCORE}


def problems(**changes: Any) -> str:
    value = {key: item for key, item in {**GOOD, **changes}.items() if item is not None}
    document = Document(file="s.yaml")
    parse(SweepStage, value, document)
    return "\n".join(document.problems)


def stage(**changes: Any) -> SweepStage:
    document = Document(file="s.yaml")
    made = parse(SweepStage, {**GOOD, **changes}, document)
    assert made is not None, document.problems
    return made


def weights(sweep: SweepStage, **point: Any) -> list[Any]:
    merge = merge_at(sweep.merge, point, "s")
    return [source.parameters.values.get("weight") for source in merge.slices[0].sources]


def test_one_number_stands_for_two_weights_that_add_up_to_one() -> None:
    assert weights(stage(), a=0.9) == [0.9, 0.1]
    assert weights(stage(), a=1) == [1, 0]


def test_mergekits_form_is_read_and_its_parameters_can_vary() -> None:
    merge = {
        "merge_method": "ties",
        "base_model": "a",
        "models": [{"model": "b", "parameters": {"weight": 1, "density": ["$d", 1]}}],
        "parameters": {"lambda": "$l"},
    }
    sweep = stage(merge=merge, vary={"d": [0.2, 0.5], "l": [1.0, 0.5]})
    made = merge_at(sweep.merge, {"d": 0.2, "l": 0.5}, "s")
    assert made.slices[0].sources[0].parameters.values["density"] == [0.2, 1]
    assert made.parameters.values["lambda"] == 0.5


def test_the_method_itself_can_vary() -> None:
    merge = {
        "method": "$m",
        "base_model": "a",
        "models": [{"model": "b", "weight": 1.0}],
    }
    sweep = stage(merge=merge, vary={"m": ["ties", "task_arithmetic"]})
    assert merge_at(sweep.merge, {"m": "ties"}, "s").method == "ties"


def test_a_list_of_merges_is_a_merge_of_merges() -> None:
    soup = {
        "name": "soup",
        "merge_method": "linear",
        "parameters": {"weight": 1},
        "models": [{"model": "x"}, {"model": "y"}],
    }
    last = {
        "merge_method": "linear",
        "models": [
            {"model": "soup", "parameters": {"weight": "$a"}},
            {"model": "z", "parameters": {"weight": "1 - $a"}},
        ],
    }
    made = merge_at(stage(merge=[soup, last]).merge, {"a": 0.9}, "s")
    assert [*made.inner] == ["soup"]
    wrong = problems(merge=[{**soup, "models": [{"model": "x", "wieght": 1}]}, last])
    assert "merge[0].models[0].wieght: unknown key" in wrong


def test_the_first_model_tells_others_what_the_result_is_like() -> None:
    assert [model.model for model in stage().models] == ["a", "b"]


def test_a_range_is_a_grid_of_round_numbers() -> None:
    assert Range(low=0.0, high=1.0, points=11).values()[3] == 0.3
    assert Range(low=0.5, high=1.0, points=3).values() == (0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": {"b": [0.5]}}, "merge.models[0].weight: $a: vary has no such name"),
        ({"vary": {"a": [1], "b": [2]}}, "vary.b: has no effect: merge has no $b"),
        (
            {"merge": {"models": [{"model": "a", "weight": "2 * $a"}, {"model": "b", "weight": "$a"}]}},
            "merge.models[0].weight: '2 * $a': expected $NAME or 1 - $NAME alone",
        ),
        ({"vary": {"a": []}}, "vary.a: expected one value at least"),
        ({"vary": {"a": {"low": 0, "high": 1}}}, "vary.a: a grid needs points"),
        ({"vary": {"a": {"low": 0, "hihg": 1}}}, "vary.a.hihg: unknown key (did you mean 'high'?)"),
        ({"vary": {"a": {"low": 1, "high": 0, "points": 3}}}, "vary.a.high: expected more than low"),
        ({"vary": {"a": {"low": 0, "high": 1, "points": 1}}}, "vary.a.points: expected 2 or more"),
        ({"search": "golden"}, "vary.a: golden needs a range"),
        (
            {"search": "golden", "vary": {"a": {"low": 0, "high": 1, "points": 3}}},
            "vary.a.points: has no effect with search: golden",
        ),
        ({"search": "cma", "vary": {"a": {"low": 0, "high": 1}}}, "budget: cma needs a budget"),
        ({"budget": 3}, "budget: has no effect with search: grid"),
        ({"search": "gird"}, "search: expected one of grid, golden, greedy_soup, cma"),
        ({"search": "greedy_soup"}, "vary: has no effect: greedy_soup chooses among the models"),
        ({"vary": None}, "merge.models[0].weight: $a: vary has no such name"),
        ({"score": None}, "expected score or command, one of the two"),
        ({"command": "x {model}"}, "expected score or command, one of the two"),
        ({"score": None, "command": "python score.py"}, "command: expected {model} in it"),
        ({"best": "lowest"}, "best: has no effect without command"),
        ({"files": ["x"]}, "files: has no effect without command"),
        (
            {"score": None, "command": "x {model}", "objective": "think"},
            "objective: has no effect: a command's number is the score",
        ),
        ({"score": {"tasks": []}}, "score.tasks: expected one or more, found none"),
        ({"score": {"tasks": ["t"], "row": 3}}, "score.row: unknown key (did you mean 'rows'?)"),
        ({"score": {"tasks": ["t"], "backend": "vllm"}}, "score.backend: candidates live in memory"),
        ({"objective": "thinking"}, "objective: expected one of mean, think, no_think, min"),
        ({"tolerance": 2.0}, "tolerance: expected a share between 0 and 1"),
        ({"vary": {"a": [0.5, "x"]}}, "merge.models[0].weight: expected a number"),
        (
            {"merge": {"methd": "linear", **PAIR}},
            "merge.methd: unknown key (did you mean 'method'?)",
        ),
        (
            {"merge": {"method": "slerp", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": "$a", "x": 1}}},
            "merge.parameters.x: slerp has no such parameter",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_by_key(changes: dict[str, Any], message: str) -> None:
    assert message in problems(**changes)


def test_a_value_that_the_method_cannot_take_is_told_with_its_point() -> None:
    merge = {
        "method": "ties",
        "base_model": "a",
        "models": [{"model": "b", "weight": 1.0, "parameters": {"density": "$a"}}],
    }
    found = problems(merge=merge, vary={"a": [0.5, 1.5]})
    assert "density: expected 1 or less, found 1.5 (at a = 1.5)" in found


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (
            {"method": "slerp", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": 1}},
            "search: greedy_soup averages models: the method is linear, not slerp",
        ),
        ({"models": [{"model": "b"}]}, "search: greedy_soup needs two models at least"),
    ],
)  # fmt: skip
def test_a_soup_is_of_several_models_averaged(merge: dict[str, Any], message: str) -> None:
    assert message in problems(merge=merge, vary=None, search="greedy_soup")


def test_models_left_out_of_a_soup_weigh_nothing() -> None:
    sweep = stage(
        merge={"models": [{"model": name} for name in "abc"]}, vary={}, search="greedy_soup"
    )
    merge = merge_at(sweep.merge, {"soup": (0, 2)}, "s")
    assert [s.parameters.values["weight"] for s in merge.slices[0].sources] == [1.0, 0.0, 1.0]


def test_a_recipe_is_refused_with_file_and_line_before_anything_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "kind: sweep\noutput_dir: out\nmerge:\n  models:\n    - {model: a, weight: $a}\n"
        "    - {model: b, wieght: 1 - $a}\nvary: {a: [0.9, 0.8]}\nscore: {tasks: [none.yaml]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, [])
    assert f"{file}:6: stages[0].merge.models[1].wieght: unknown key" in str(caught.value)
    assert "(at a" not in str(caught.value), "it is wrong at every point"
    assert f"{file}:8: score.tasks[0]: 'none.yaml': no such file" in str(caught.value)


def test_stages_and_paths_in_the_merge_are_those_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "t.yaml").touch()
    file = tmp_path / "r.yaml"
    file.write_text(
        "output_dir: out\nstages:\n- {name: d, kind: script, script: t.yaml}\n"
        "- name: s\n  kind: sweep\n  merge:\n    models:\n      - {model: near, weight: $a}\n"
        "      - {model: stage:d, weight: 1 - $a}\n  vary: {a: [0.9]}\n  score: {tasks: [t.yaml]}\n"
    )
    config = load_recipe(file, []).stage("s").config
    assert config.models[0].model == str(tmp_path / "near")
    assert config.score.tasks == (str(tmp_path / "t.yaml"),)
    assert list(references(config)) == ["stage:d"]
