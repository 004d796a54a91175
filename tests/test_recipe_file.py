"""Which file a command's RECIPE is: a file, a folder, or a name of a recipe that ships."""

import logging
from pathlib import Path

import pytest

from dualign.cli.main import main
from dualign.errors import ConfigError
from dualign.experiments.config import read_experiment
from dualign.recipe_file import find_recipe, shipped_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two of the user's, one called as a recipe that ships."""
    for name in ("mine", "quickstart", "empty"):
        (tmp_path / name).mkdir()
    for name in ("mine", "quickstart"):
        (tmp_path / name / "recipe.yaml").write_text("stages: []")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mine", "mine/recipe.yaml"),
        ("mine/", "mine/recipe.yaml"),
        ("./mine", "mine/recipe.yaml"),
        ("../{here}/mine", "../{here}/mine/recipe.yaml"),
        ("quickstart/", "quickstart/recipe.yaml"),
        ("./quickstart", "quickstart/recipe.yaml"),
        ("quickstart/recipe.yaml", "quickstart/recipe.yaml"),
    ],
)
def test_a_folder_stands_for_its_recipe(
    here: Path, name: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_recipe(name.format(here=here.name))
    assert found == Path(file.format(here=here.name)), "its files are named as the user named it"
    assert not caplog.text


def test_a_name_that_ships_means_the_recipe_that_ships_and_the_folder_is_told(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert find_recipe("quickstart") == shipped_folder() / "quickstart" / "recipe.yaml"
    assert caplog.messages == ["quickstart: the recipe that ships; quickstart/ is the folder here"]
    (here / "quickstart" / "recipe.yaml").unlink()
    caplog.clear()
    assert find_recipe("quickstart").is_relative_to(shipped_folder())
    assert find_recipe("smollm3/sft") == shipped_folder() / "smollm3" / "sft.yaml"
    assert not caplog.text


def test_the_recipe_of_an_experiment_may_be_a_folder_beside_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = here / "search.yaml"
    monkeypatch.chdir(here / "empty")
    for name, file in (
        ("mine", here / "mine" / "recipe.yaml"),
        ("quickstart/", here / "quickstart" / "recipe.yaml"),
        ("quickstart", shipped_folder() / "quickstart" / "recipe.yaml"),
    ):
        experiment.write_text(f"name: e\nrecipe: {name}\ngrid: {{sft.seed: [1, 2]}}\n")
        assert read_experiment(experiment, ()).recipe_file == file


def test_a_folder_without_recipe_yaml_names_its_files(here: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"empty: is a folder without recipe\.yaml; name the file"
    ):
        find_recipe("empty")
    (here / "empty" / "sft.yaml").touch()
    with pytest.raises(ConfigError, match=r"such as one of those in it: sft\.yaml"):
        find_recipe("empty")
    (here / "quickstart" / "recipe.yaml").unlink()
    with pytest.raises(ConfigError, match="quickstart/: is a folder without"):
        find_recipe("quickstart/")


@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_commands_say_the_file_of_a_folder(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (here / "mine" / "recipe.yaml").write_text("name: mine\nstage: []\n")
    assert main([command, "./mine"]) == 2
    assert "mine/recipe.yaml" in capsys.readouterr().err
