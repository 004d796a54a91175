"""Rules that the repository holds itself to: layers, packaging, light imports, recipes that load, sizes."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from functools import cache
from pathlib import Path

import pytest

from dualign.experiments.config import read_experiment
from dualign.experiments.runs import plan_runs
from dualign.recipe import load_recipe

ROOT = Path(__file__).parents[1]
STAGES = ("sft", "preference", "merging")
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "numpy",
    "accelerate",
    "matplotlib",
    "rich",
)


def modules() -> list[Path]:
    return [path for name in ("dualign", *STAGES) for path in (ROOT / name).rglob("*.py")]


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def test_stages_do_not_import_each_other_and_only_commands_and_api_import_stages() -> None:
    faults = []
    for path in modules():
        if path.is_relative_to(ROOT / "dualign" / "cli") or path == ROOT / "dualign" / "api.py":
            continue
        for name in imported(path):
            stage = name.split(".")[1] if name.startswith("dualign.") and "." in name else ""
            if stage in STAGES and stage != owner(path):
                faults.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not faults


def test_the_packages_list_is_that_of_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"dualign"}
    for path in (ROOT / "dualign").rglob("__init__.py"):
        folders.add(".".join(path.parent.relative_to(ROOT).parts))
    for name in (*STAGES, "recipes"):
        for path in (ROOT / name).rglob("__init__.py"):
            folders.add("dualign." + ".".join(path.parent.relative_to(ROOT).parts))
    assert set(settings["packages"]) == folders


@pytest.mark.parametrize(
    "command",
    [["--help"], ["run", "--help"], ["doctor", "--help"], ["recipes", "list"]],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from dualign.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
    assert len(done.stdout) > 100


def test_the_dataclasses_of_all_stages_import_nothing_heavy() -> None:
    code = (
        "import sys; from dualign.stages import config_classes; config_classes()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "recipes").glob("[!a]*/*.yaml")),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    if path.name == "model_config.yaml" or path.parent.name == "skypilot":
        pytest.skip("not a recipe")
    if path.name == "experiment.yaml":
        assert plan_runs(read_experiment(path, []), remember=False).runs
        return
    recipe = load_recipe(path, [])
    assert recipe.stages
    assert path.read_text().startswith("# "), "the first line says what the recipe is for"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 65, f"{node.name} is too long"


def test_nothing_that_ships_needs_the_tests_or_a_folder_outside() -> None:
    for path in [*modules(), *(ROOT / "recipes").rglob("*.py")]:
        assert not any(name.split(".")[0] == "tests" for name in imported(path)), path
        assert "../shared" not in path.read_text(), path


def tracked_files() -> list[str]:
    """What a commit of all that is here would hold."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout says which files are the repository's")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build an `sdist` or a `wheel` as pip does, with the setuptools that is here."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "would be ignored" not in done.stderr, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of the repository's files, and a wheel that is built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    tree, unpacked = folder / "tree", folder / "unpacked"
    for name in tracked_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    sdist = build("sdist", tree, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (top,) = unpacked.iterdir()
    return sdist, build("wheel", top, folder)


def test_the_sdist_holds_every_file_but_those_of_its_host(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked_files() if name not in names]
    assert [name for name in missing if not name.startswith(".")] == []


def test_the_wheel_holds_every_file_of_the_package_and_no_other(
    distributions: tuple[Path, Path],
) -> None:
    wheel = distributions[1]
    names = set(zipfile.ZipFile(wheel).namelist())
    record = wheel.name.split("-py3")[0] + ".dist-info"
    assert f"{record}/licenses/LICENSE" in names
    shipped = {
        name if name.startswith("dualign/") else f"dualign/{name}"
        for name in tracked_files()
        if name.split("/")[0] in ("dualign", *STAGES, "recipes")
    }
    assert {name for name in names if not name.startswith(f"{record}/")} == shipped


def test_the_wheel_runs_from_any_folder(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """With this environment's libraries, in a folder that isn't the checkout."""
    wheel = distributions[1]
    place = tmp_path / "environment"
    venv.create(place, system_site_packages=False, with_pip=False)
    site = next((place / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "libraries.pth").write_text(
        "\n".join(p for p in sys.path if p.endswith("site-packages"))
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python = str(place / "bin" / "python")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = subprocess.run(
        [python, "-m", "dualign", "recipes", "show", "quickstart"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "stages:" in shown.stdout
    where = subprocess.run(
        [python, "-c", "import dualign.sft; print(dualign.sft.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout
    alone = subprocess.run(
        [python, "-c", "import sft"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode != 0
