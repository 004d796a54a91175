"""The quickstart's recipe on thinking budgets: two SFT stages that differ in budgets alone."""

from dataclasses import replace

from dualign.recipe import load_recipe
from dualign.recipe_file import find_recipe


def test_the_stages_differ_in_rows_that_come_again_with_a_budget_alone() -> None:
    recipe = load_recipe(find_recipe("quickstart/budgets"), [])
    plain, budgeted = (recipe.stage(name).config for name in ("sft", "sft-budgets"))
    assert replace(budgeted, name="sft", data=plain.data) == plain
    assert replace(budgeted.data, sources=plain.data.sources) == plain.data
    sources = [(source.split, source.thinking_budget) for source in budgeted.data.sources]
    assert sources == [("train", None), ("train[50%:75%]", 8), ("train[75%:]", 16)]
    quickstart = load_recipe(find_recipe("quickstart"), []).stage("sft").config
    assert plain == quickstart
    evaluation = recipe.stage("eval").config
    assert evaluation.budget_tokens == (0, 8, 16, 24, 32)
