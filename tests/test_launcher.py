"""What `launch` of a recipe says, and the command line that it becomes."""

import sys
from pathlib import Path

import pytest

from dualign.cost.stage_shape import launcher
from dualign.errors import ConfigError
from dualign.launcher import LaunchConfig, launch_command, launch_settings
from dualign.recipe import load_recipe

ZERO3 = str(Path(__file__).parents[1] / "recipes" / "accelerate" / "zero3.yaml")
LAUNCH = [sys.executable, "-m", "dualign.first_failure"]


def test_a_file_alone_is_what_accelerate_reads() -> None:
    assert launch_settings(None) == {}
    assert launch_settings(ZERO3)["num_processes"] == 8
    assert launch_command(ZERO3, ["sft", "r.yaml"]) == [
        *LAUNCH,
        *("--config_file", ZERO3, "-m", "dualign", "sft", "r.yaml"),
    ]


def test_keys_around_a_file_come_before_it() -> None:
    launch = LaunchConfig(config_file=ZERO3, num_processes=4, max_restarts=2)
    assert launch_settings(launch)["num_processes"] == 4
    assert launcher(launch) == (4, "zero3")
    assert launch_command(launch, ["sft"]) == [
        *(*LAUNCH, "--config_file", ZERO3, "--num_processes", "4", "--max_restarts", "2"),
        *("-m", "dualign", "sft"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_machines: 3\nnum_processes: 16", "16 processes can't be shared by 3 machines alike"),
        ("num_processes: many", "num_processes: expected 1 or more, found 'many'"),
        ("num_machines: 0", "num_machines: expected 1 or more, found 0"),
        ("num_machines: 2", "2 machines start num_processes together, which isn't there"),
    ],
)
def test_counts_that_accelerate_would_round_down_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "launcher.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        launch_settings(str(file))


@pytest.mark.parametrize("text", ["use_cpu: false", "num_processes: null"])
def test_processes_that_nobody_says_are_left_to_accelerate(tmp_path: Path, text: str) -> None:
    """It starts one for each GPU."""
    file = tmp_path / "launcher.yaml"
    file.write_text(text)
    launch = LaunchConfig(config_file=str(file), max_restarts=3)
    assert launch_command(launch, ["sft"])[3:] == [
        *("--config_file", str(file), "--max_restarts", "3", "-m", "dualign", "sft")
    ]
    assert launcher(launch) == (1, None)


def test_a_recipe_takes_a_file_or_keys_and_finds_both_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "zero.yaml").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "kind: sft\nname: sft\nmodel: m\noutput_dir: out\ndata: {sources: [{path: rows.jsonl}]}\n"
    )

    def launch(text: str) -> object:
        with recipe.open("a") as file:
            file.write(f"launch: {text}\n")
        return load_recipe(recipe, []).stages[0].config.launch

    file = str(tmp_path / "zero.yaml")
    assert launch("zero.yaml") == file
    recipe.write_text(recipe.read_text().replace("launch: zero.yaml\n", ""))
    assert launch("{config_file: zero.yaml, max_restarts: 1}") == LaunchConfig(
        config_file=file, max_restarts=1
    )
    for overrides, message in (
        (["launch.max_restarts=-1"], "max_restarts: expected 0 or more, found -1"),
        (["launch.num_processes=0"], "num_processes: expected 1 or more, found 0"),
        (["launch.restarts=1"], "unknown key .did you mean 'max_restarts'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_recipe(recipe, [f"sft.{override}" for override in overrides])
