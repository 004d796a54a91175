"""The files that a contributor's tools read agree with each other: pins, workflows, hooks, pages, links."""

import ast
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from dualign import __version__
from tests import processes

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USERS_EXTRAS = (
    "quant",
    "deepspeed",
    "endpoint",
    "eval",
    "lm-eval",
    "gguf",
    "quantize",
    "sweep",
    "data",
    "datatrove",
    "documents",
    "trackers",
)
YAML_FILES = [
    ROOT / ".pre-commit-config.yaml",
    ROOT / "CITATION.cff",
    *sorted((ROOT / ".github").rglob("*.yml")),
]
ROOMS = ("dualign", "sft", "preference", "merging")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line[:1] not in ("#", "")]
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


def test_the_oldest_pins_are_the_lower_bounds_of_the_project() -> None:
    requirements = [*PROJECT["dependencies"]]
    for extra in USERS_EXTRAS:
        requirements += PROJECT["optional-dependencies"][extra]
    bounds = {}
    for requirement in requirements:
        name, bound = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()  # type: ignore[union-attr]
        bounds[name.lower()] = bound
    oldest = {name: pin.removesuffix(".*") for name, pin in pins("constraints-oldest.txt").items()}
    assert oldest == bounds


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_every_yaml_file_of_the_tools_parses(path: Path) -> None:
    content = read_yaml(path)
    assert isinstance(content, dict)
    if path.parent.name == "workflows":
        assert {"name", "permissions", "jobs"} <= content.keys()
        for job in content["jobs"].values():
            assert job["timeout-minutes"] <= 60
            for step in job["steps"]:
                assert ("uses" in step) != ("run" in step)
                assert "@" in step.get("uses", "@"), "an action has a version"


def test_the_tests_run_on_every_python_that_the_project_names() -> None:
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    jobs = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    for job in ("test", "install"):
        assert jobs[job]["strategy"]["matrix"]["python-version"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_ci_runs_the_checks_and_the_tests() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-2:] == ["make check", "make test"]
    jobs = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    for command in ("make check", "make test", "make docs"):
        assert command in commands
    assert "make test CONSTRAINTS=constraints-oldest.txt" in commands


def test_the_hook_and_the_check_use_one_version_of_ruff() -> None:
    hooks = {hook["repo"]: hook["rev"] for hook in read_yaml(YAML_FILES[0])["repos"]}
    ruff = hooks["https://github.com/astral-sh/ruff-pre-commit"]
    assert ruff == "v" + pins("constraints.txt")["ruff"]


def test_setting_up_makes_the_tree_of_links_that_editors_read() -> None:
    recipe = (ROOT / "Makefile").read_text().split("$(VENV)/.ready:", 1)[1].split("\n\n", 1)[0]
    assert "$(MAKE) links" in recipe
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tool["pyright"]["extraPaths"] == [".typing"]


def test_the_citation_has_the_version_of_the_code() -> None:
    assert read_yaml(ROOT / "CITATION.cff")["version"] == __version__


def anchors(path: Path) -> set[str]:
    """The ids that GitHub and mkdocs give to a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_of_a_page_is_dead(path: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_a_release_links_its_readme_to_the_files_of_its_tag(tmp_path: Path) -> None:
    steps = read_yaml(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["build"]["steps"]
    (command,) = (step["run"] for step in steps if "README.md" in step.get("run", ""))
    page = tmp_path / "README.md"
    page.write_text(
        "![A run](docs/a.png)\n| [one](docs/a.md#b), [two](c.md) | [x](#top), [y](https://y.org/z) |\n"
    )
    names = {"GITHUB_SERVER_URL": "https://host", "GITHUB_REPOSITORY": "me/it"}
    variables = {**os.environ, **names, "GITHUB_REF_NAME": "v1.2.3"}
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=variables, check=True)
    files = "https://host/me/it/blob/v1.2.3"
    assert page.read_text() == (
        "![A run](https://host/me/it/raw/v1.2.3/docs/a.png)\n"
        f"| [one]({files}/docs/a.md#b), [two]({files}/c.md) | [x](#top), [y](https://y.org/z) |\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(path: Path) -> None:
    folders = "dualign|sft|preference|merging|tests|docs|recipes|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", path.read_text()):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_the_site_has_every_page_once() -> None:
    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [
            file
            for part in (entry if isinstance(entry, list) else entry.values())
            for file in files(part)
        ]

    class Loader(yaml.SafeLoader):
        """Reads the names of Python functions in mkdocs.yml as text."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda _, suffix, __: suffix)
    listed = files(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    docs = ROOT / "docs"
    pages = [
        str(p.relative_to(docs)) for ending in ("md", "ipynb") for p in docs.rglob(f"*.{ending}")
    ]
    assert sorted(listed) == sorted(pages)


def test_the_changelog_links_no_file() -> None:
    """It is a page of the site too, in another folder: a path that is right here is dead there."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link] == []


def test_the_layout_names_modules_that_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = re.findall(r"^\| `([\w/]+/)` \|[^|]*\|([^|]*)\|$", page, re.MULTILINE)
    assert len(rooms) > 20
    for room, modules in rooms:
        for name in re.findall(r"`(\w+)`", modules):
            assert (ROOT / room / f"{name}.py").is_file(), f"{room}{name}.py"
        present = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
        if room.startswith(("dualign/", "sft", "preference")):
            assert present == set(re.findall(r"`(\w+)`", modules)), room


def test_the_page_names_definitions_that_are_there() -> None:
    """`NAME` (`file.py`) in "How to add or change" is a definition in that file; paths exist."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition("## How to add or change")[2].partition("\n## ")[0]
    pairs = re.findall(r"`(\w+)` \(`([\w/]+\.py)`", section)
    assert len(pairs) > 15
    for name, file in pairs:
        text = (ROOT / file).read_text()
        assert re.search(rf"^(?:class |\s*def |){name}\b", text, re.MULTILINE), f"{name} ({file})"
    for path in re.findall(r"`([\w/]+/[\w.]*)`", section):
        if path != "recipes/NAME/":
            assert (ROOT / path).exists(), path


HANGS = """
import pathlib, subprocess, threading
def wait_in_a_thread(event): event.wait()
def test_hang():
    command = ["sh", "-c", "sleep 1000000 & echo $!; wait"]
    child = subprocess.Popen(command, stdout=-1, start_new_session=True)
    pathlib.Path(__file__).with_name("pid").write_bytes(child.stdout.readline())
    event = threading.Event()
    threading.Thread(target=wait_in_a_thread, args=(event,), daemon=True).start()
    child.wait()
"""


def start_a_hang(folder: Path, *options: str) -> subprocess.Popen[str]:
    """pytest on a test that waits for its child for ever; its id is written into `pid`."""
    (folder / "test_hang.py").write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.processes", *options]
    return processes.start([*command, str(folder / "test_hang.py")], cwd=ROOT)


def wait_for_its_child(folder: Path) -> None:
    processes.wait_until(lambda: processes.gone(int((folder / "pid").read_text())))


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="children are listed by Linux")


@on_linux
def test_a_test_that_hangs_ends_with_all_stacks_and_without_its_children(tmp_path: Path) -> None:
    process = start_a_hang(tmp_path, "-o", "timeout=3")
    printed = process.communicate()[0]
    assert process.returncode == 1, printed
    assert "Timeout (>3.0s)" in printed and "wait_in_a_thread" in printed
    wait_for_its_child(tmp_path)


@on_linux
@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGTERM, "0"),
        (signal.SIGKILL, "1"),
        pytest.param(signal.SIGINT, "1", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_ended_leaves_no_process(tmp_path: Path, number: int, workers: str) -> None:
    """A worker that its run tells to end does so after five seconds."""
    process = start_a_hang(tmp_path, "-n", workers)
    file = tmp_path / "pid"
    processes.wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate()
    wait_for_its_child(tmp_path)
    processes.wait_until(lambda: all(processes.gone(child.pid) for child in started))


def test_every_test_has_a_limit_that_only_what_hangs_reaches() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert 3600 <= settings["timeout"] < settings["faulthandler_timeout"]
    assert settings["faulthandler_exit_on_timeout"]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_test_has_a_limit_of_its_own(path: Path) -> None:
    """On a machine that others keep busy, it would fail what is right."""
    if path.name == "conftest.py" and path.parent.name == "tests":  # no deadline at all
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            names = [word.arg for word in node.keywords]
            assert {"timeout", "deadline"}.isdisjoint(names), f"{path}:{node.lineno}"


def test_docstrings_describe_one_parameter_a_line() -> None:
    """`a, b: both` is no parameter to the site, whose build ends with that warning."""
    wrong = []
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        for block in re.findall(r"^ +Args:\n((?: +\S.*\n)+)", path.read_text(), re.MULTILINE):
            lines = re.findall(r"^ +(\w+(?:, \w+)+): ", block, re.MULTILINE)
            wrong += [f"{path}: {line}" for line in lines]
    assert not wrong, "\n".join(["", *wrong])
