"""Every planted defect between a recipe's stages, its model and its data is found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dualign.doctor.doctor import Diagnosis, diagnose_recipe
from dualign.doctor.stages import check_model_config
from dualign.errors import ConfigError
from dualign.recipe import load_recipe
from tests.doctor.conftest import write
from tests.doctor.defective_rows import no_think_row, pair_row, think_row


class Planted(NamedTuple):
    make: Callable[[dict[str, Any]], None]
    code: str


def clean_recipe(folder: Path, model: Path) -> dict[str, Any]:
    rows = write(folder, "rows", [row(n) for n in range(4) for row in (think_row, no_think_row)])
    pairs = [pair_row(n) for n in range(3)]
    pairs += [_thinking(pair_row(n)) for n in range(3, 6)]
    stages = [
        {
            "name": "sft",
            "kind": "sft",
            "model": str(model),
            "data": {"sources": [{"path": str(rows)}]},
        },
        {
            "name": "apo",
            "kind": "preference",
            "model": "stage:sft",
            "data": {"sources": [{"path": str(write(folder, "pairs", pairs))}], "packing": "none"},
            "lora": {"r": 2},
        },
    ]
    stages[0]["lora"] = {"r": 2}
    return {"name": "made", "output_dir": str(folder / "out"), "stages": stages}


def _thinking(row: dict[str, Any]) -> dict[str, Any]:
    sides = {name: f"<think>\nAdd them.\n</think>\n{row[name]}" for name in ("chosen", "rejected")}
    return row | sides | {"mode": "think"}


def template_that_changes_on_the_way(recipe: dict[str, Any]) -> None:
    recipe["stages"][1]["template"] = "smollm3-training"


def settings_that_change_on_the_way(recipe: dict[str, Any]) -> None:
    recipe["stages"][1]["template_kwargs"] = {"date": "2025-07-01"}


def rows_longer_than_the_model(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["data"]["max_tokens"] = 100_000
    path = Path(recipe["stages"][0]["data"]["sources"][0]["path"])
    row = think_row(0)
    row["messages"][0]["content"] = "How much is it? " * 9_000
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def context_that_can_not_be(recipe: dict[str, Any]) -> None:
    recipe["stages"][1]["context"] = {"length": 16}
    recipe["stages"][1]["save"] = "merged"


def rows_longer_than_a_dynamic_model(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["data"]["max_tokens"] = 100_000
    recipe["stages"][0]["context"] = {"length": 200_000, "rope": "dynamic"}
    recipe["stages"][0]["save"] = "merged"


def source_that_is_no_table(recipe: dict[str, Any]) -> None:
    path = Path(recipe["stages"][0]["data"]["sources"][0]["path"])
    path.write_text('{"messages": [}\n', encoding="utf-8")


def split_that_is_not_there(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["data"]["sources"][0]["split"] = "train[100:]"


def model_that_is_no_folder(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["model"] = "/models/gone"


def nothing_but_contradictions(recipe: dict[str, Any]) -> None:
    path = Path(recipe["stages"][0]["data"]["sources"][0]["path"])
    write(path.parent, "rows", [no_think_row(n) | {"mode": "think"} for n in range(3)])


def one_mode_only(recipe: dict[str, Any]) -> None:
    path = Path(recipe["stages"][0]["data"]["sources"][0]["path"])
    write(path.parent, "rows", [think_row(n) for n in range(3)])


def hardly_any_answers_at_once(recipe: dict[str, Any]) -> None:
    path = Path(recipe["stages"][0]["data"]["sources"][0]["path"])
    long = think_row(9)
    long["messages"][1]["reasoning_content"] = "count on " * 500
    write(path.parent, "rows", [no_think_row(1), long])


def chosen_always_longer(recipe: dict[str, Any]) -> None:
    path = Path(recipe["stages"][1]["data"]["sources"][0]["path"])
    write(path.parent, "pairs", [pair_row(n) | {"chosen": f"It is {n}. " * 20} for n in range(3)])


def data_of_a_stage_that_has_not_run(recipe: dict[str, Any]) -> None:
    made = {"name": "made-data", "kind": "script", "script": __file__}
    recipe["stages"].insert(0, made)
    recipe["stages"][1]["data"]["sources"][0]["path"] = "stage:made-data/rows.jsonl"


def rows_of_two_shapes(recipe: dict[str, Any]) -> None:
    path = Path(recipe["stages"][0]["data"]["sources"][0]["path"])
    other = {"prompt": "What is 9 + 9?", "completion": "It is 18.", "mode": "no_think"}
    write(path.parent, "rows", [think_row(1), no_think_row(2), other])


def more_tokens_than_there_are(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["data"]["sources"][0]["tokens"] = 1_000_000


def more_held_out_than_there_are(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["data"]["validation_rows"] = 50


def sources_of_one_name(recipe: dict[str, Any]) -> None:
    recipe["stages"][0]["data"]["sources"] *= 2


def copies_that_dedup_leaves_out(recipe: dict[str, Any]) -> None:
    data = recipe["stages"][0]["data"]
    path = Path(data["sources"][0]["path"])
    write(path.parent, "rows", [think_row(1), no_think_row(2), think_row(1)])
    data["dedup"] = {"method": "exact"}


def evaluation_on_rows_that_may_be_trained_on(recipe: dict[str, Any]) -> None:
    task = Path(recipe["output_dir"]).parent / "task.yaml"
    task.write_text("name: sums\n", encoding="utf-8")
    evaluated = {"name": "eval", "kind": "eval", "models": ["stage:apo"], "tasks": [str(task)]}
    recipe["stages"].append(evaluated)


PLANTED = (
    Planted(rows_of_two_shapes, "several_shapes"),
    Planted(more_tokens_than_there_are, "mixture_impossible"),
    Planted(more_held_out_than_there_are, "mixture_impossible"),
    Planted(sources_of_one_name, "mixture_impossible"),
    Planted(copies_that_dedup_leaves_out, "screened_out"),
    Planted(evaluation_on_rows_that_may_be_trained_on, "not_decontaminated"),
    Planted(template_that_changes_on_the_way, "template_changes"),
    Planted(settings_that_change_on_the_way, "template_changes"),
    Planted(rows_longer_than_the_model, "beyond_positions"),
    Planted(context_that_can_not_be, "context_unusable"),
    Planted(rows_longer_than_a_dynamic_model, "positions_of_longest"),
    Planted(source_that_is_no_table, "source_unreadable"),
    Planted(split_that_is_not_there, "source_unreadable"),
    Planted(model_that_is_no_folder, "tokenizer_unreadable"),
    Planted(nothing_but_contradictions, "nothing_left"),
    Planted(one_mode_only, "one_mode"),
    Planted(hardly_any_answers_at_once, "mode_imbalance"),
    Planted(chosen_always_longer, "length_bias"),
    Planted(data_of_a_stage_that_has_not_run, "waits_for_stage"),
)


def examined(recipe: dict[str, Any], folder: Path) -> Diagnosis:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return diagnose_recipe(load_recipe(file, []))


def test_a_clean_recipe_has_no_fault_and_every_row_is_accounted_for(
    tmp_path: Path, shrunk: Path
) -> None:
    found = examined(clean_recipe(tmp_path, shrunk), tmp_path)
    assert found.findings.all() == []
    assert (found.rows["in"], found.rows["kept"], found.rows["dropped"]) == (14, 14, {})


@pytest.mark.parametrize("planted", PLANTED, ids=lambda item: item.make.__name__)
def test_a_planted_defect_of_a_recipe_is_found(
    planted: Planted, tmp_path: Path, shrunk: Path
) -> None:
    recipe = clean_recipe(tmp_path, shrunk)
    planted.make(recipe)
    assert planted.code in {finding.code for finding in examined(recipe, tmp_path).findings.all()}


@pytest.mark.parametrize("mix", [None, {"think": 0.5, "no_think": 0.5}])
def test_first_rows_of_a_stream_say_nothing_of_modes_that_the_recipe_weighs(
    mix: dict[str, float] | None, tmp_path: Path, shrunk: Path
) -> None:
    recipe = clean_recipe(tmp_path, shrunk)
    hardly_any_answers_at_once(recipe)
    sft = recipe["stages"][0]
    sft["data"] |= {"streaming": True, "mix": mix}
    sft.setdefault("train", {}).pop("num_train_epochs", None)
    sft["train"]["max_steps"] = 2
    codes = {finding.code for finding in examined(recipe, tmp_path).findings.all()}
    assert ("mode_imbalance" in codes) == (mix is None)
    assert "stream_looked_at" in codes


def test_packing_is_refused_for_layers_whose_state_runs_on(tmp_path: Path, shrunk: Path) -> None:
    recipe = clean_recipe(tmp_path, shrunk)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    sft, apo = (entry.config for entry in load_recipe(file, []).stages)
    mixed = {"layer_types": ["full_attention", "linear_attention"]}
    assert [fault.code for fault in check_model_config(sft, mixed)] == ["packing_not_isolated"]
    assert list(check_model_config(apo, mixed)) == []
    assert (
        list(check_model_config(sft, {"layer_types": ["full_attention", "sliding_attention"]}))
        == []
    )


def test_a_recipe_without_training_is_refused(tmp_path: Path, shrunk: Path) -> None:
    recipe = clean_recipe(tmp_path, shrunk)
    recipe["stages"] = [{"name": "made-data", "kind": "script", "script": __file__}]
    with pytest.raises(ConfigError, match="no sft or preference stage"):
        examined(recipe, tmp_path)
