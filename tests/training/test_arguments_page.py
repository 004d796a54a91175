"""docs/training-arguments.md against the installed transformers and TRL: every field, and what happens to each value."""

import re
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from trl import DPOConfig, SFTConfig

from dualign import engine
from dualign.errors import ConfigError, DualignError
from dualign.recipe import load_recipe
from tests.training.test_preflight import run, write_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "training-arguments.md").read_text(encoding="utf-8")
# What only the stage itself can know, since it depends on the model.
AT_THE_STAGE = "refused before the first step: "


class Try(NamedTuple):
    """A row of the page: a field, what was tried, and what came of it."""

    name: str
    kind: str
    train: dict
    outcome: str


def page_rows() -> list[Try]:
    kind, rows = "", []
    for line in PAGE.splitlines():
        if line.startswith("## "):
            kind = "preference" if "DPOConfig" in line else "sft"
        elif match := re.fullmatch(r"\| `(\w+)` \|(?: `(.*)`)? +\| (.+) \|", line):
            name, tried, outcome = match.groups()
            rows.append(Try(name, kind, yaml.safe_load(tried or "{}"), outcome))
    return rows


ROWS = page_rows()
TRIED = [row for row in ROWS if row.train]
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the page is about a CPU")


def test_the_page_has_every_field_of_the_installed_versions() -> None:
    for kind, config in (("sft", SFTConfig), ("preference", DPOConfig)):
        shown = {row.name for row in ROWS if row.kind in ("sft", kind)}
        installed = {field.name for field in fields(config) if not field.name.startswith("_")}
        assert installed - shown == set(), kind
    every = {field.name for config in (SFTConfig, DPOConfig) for field in fields(config)}
    assert {row.name for row in ROWS} - every == set()


@pytest.mark.parametrize("row", [row for row in ROWS if not row.train], ids=lambda row: row.name)
def test_a_field_that_is_set_by_dualign_is_refused_with_the_key_to_use(
    row: Try, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, tiny, rows, kind=row.kind, train={row.name: True})
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, [])
    assert row.outcome.removeprefix("set by dualign: ") in str(caught.value)


@on_a_cpu
@pytest.mark.parametrize("row", TRIED, ids=lambda row: f"{row.kind}-{row.train}")
def test_each_value_is_taken_or_refused_as_the_page_says(
    row: Try, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Without a step; the slow test below takes them."""
    try:
        path = write_recipe(
            tmp_path, tiny, rows, kind=row.kind, train=row.train, data={"validation_rows": 4}
        )
        recipe = load_recipe(path, [])
        engine.require_runnable(recipe, engine.statuses(recipe, remember=False))
        outcome = "works"
    except DualignError as error:
        outcome = str(error)
    if AT_THE_STAGE not in row.outcome:
        assert row.outcome.removeprefix("refused: ") in outcome


@on_a_cpu
@pytest.mark.slow
@pytest.mark.parametrize("row", TRIED, ids=lambda row: f"{row.kind}-{row.train}")
def test_each_value_that_works_trains(row: Try, tiny: Path, rows: Path, tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, tiny, rows, kind=row.kind, train=row.train, data={"validation_rows": 4}
    )
    if row.outcome == "works":
        assert (run(path) / "run.json").is_file()
    else:
        with pytest.raises(DualignError) as caught:
            run(path)
        assert row.outcome.removeprefix("refused: ") in str(caught.value)
