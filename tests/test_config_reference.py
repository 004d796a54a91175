"""What the documentation says about recipes is what the code takes."""

import re
from pathlib import Path

import pytest

from dualign.cli.main import main
from dualign.config_reference import key_list
from dualign.recipe import load_recipe
from dualign.recipe_card import CardConfig
from dualign.stages import config_classes
from dualign.tasks.files import FileTask

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


def test_the_page_lists_every_key() -> None:
    wanted = key_list({**config_classes(), "task": FileTask, "card": CardConfig}).replace(
        "## ", "### "
    )
    page = PAGE.read_text(encoding="utf-8").split("\n## All keys", 1)[1]
    listed = "### " + page.split("\n### ", 1)[1]
    assert listed.strip() == wanted, "copy what `dualign recipes keys` prints into docs/recipes.md"


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    for file in ("rows.jsonl", "task.yaml"):
        (tmp_path / file).touch()
    (tmp_path / "mine.yaml").write_text(example[1])
    assert [stage.kind for stage in load_recipe(tmp_path / "mine.yaml", []).stages] == [
        "sft",
        "eval",
    ]


def test_one_kind_is_listed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "keys", "preference"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("## preference\n")
    assert "- `template` (text, default dualign): dualign, chatml" in said
    assert "\n    - `path` (text, required): a file" in said
    assert main(["recipes", "keys", "prefrence"]) == 2
    assert "did you mean 'preference'?" in capsys.readouterr().err
