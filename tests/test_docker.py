"""Dockerfile, .dockerignore and docs/docker.md fit together. CI builds the image for CPUs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
Stage = list[tuple[str, str]]


def stages() -> dict[str, Stage]:
    """Each stage by name, with its instructions in order; those of the stage it starts from first."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    named: dict[str, Stage] = {}
    current: Stage = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            current = named[name] = list(named.get(image, ()))
        if word:
            current.append((word, rest))
    return named


def instructions(stage: str, word: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == word]


def ignored() -> tuple[set[str], set[str]]:
    """What .dockerignore lets through at the top, and the lines that take something away again."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "nothing goes into an image unless it is named"
    return {rule[1:] for rule in rules if rule[0] == "!"}, {r for r in rules[1:] if r[0] != "!"}


def test_an_image_gets_what_the_wheel_is_built_from_and_nothing_else() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    built_from = {*tool["package-dir"].values(), "pyproject.toml", "README.md", "LICENSE"}
    allowed, taken_away = ignored()
    assert allowed == built_from | {"constraints.txt"}
    assert taken_away == {"**/__pycache__"}
    assert all((ROOT / name).exists() for name in allowed)


def test_what_is_copied_is_let_through() -> None:
    allowed, _ = ignored()
    for stage in stages():
        for rest in instructions(stage, "COPY"):
            name = rest.split()[0]
            assert name in (".", "--from=wheel") or name in allowed


def test_both_images_run_dualign_as_a_user_without_rights() -> None:
    for stage in ("cpu", "cuda"):
        assert instructions(stage, "USER")[-1] == "dualign"
        assert stages()[stage][-1][0] == "USER"
        assert instructions(stage, "ENTRYPOINT") == ['["dualign"]']
        assert instructions(stage, "STOPSIGNAL") == ["SIGINT"], "the first process gets no SIGTERM"
        variables = instructions(stage, "ENV")[0]
        assert variables.startswith("HOME=/cache ")
        assert "PIP_CACHE_DIR=/root/.cache/pip" in variables, "the mounted one, wherever HOME is"
        for name in ("HF_HOME", "DUALIGN_CACHE", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
            assert f"{name}=/cache/" in variables


def test_images_hold_no_secret_and_the_cache_of_pip_stays_outside() -> None:
    for stage in stages():
        for word in ("ARG", "ENV"):
            assert not re.search(
                "token|secret|password|key", " ".join(instructions(stage, word)), re.I
            )
        for command in instructions(stage, "RUN"):
            if "pip install" in command or "pip wheel" in command:
                assert "--mount=type=cache,target=/root/.cache/pip" in command
                assert "--index-url" not in command.replace("--extra-index-url", ""), "no PyPI"
            if "pip install" in command:
                installs = command.count("pip install")
                assert command.count("--constraint /constraints.txt") == installs


def test_extras_of_the_images_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.findall(r"\.whl\)\[([\w,-]+)\]", (ROOT / "Dockerfile").read_text())
    assert len(named) == 2
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()


def test_the_page_builds_targets_and_arguments_that_exist() -> None:
    targets = set(re.findall(r"--target (\w+)", PAGE))
    assert targets == {"cpu", "cuda"} <= stages().keys()
    text = (ROOT / "Dockerfile").read_text()
    arguments = set(re.findall(r"^ARG (\w+)", text, re.M))
    assert set(re.findall(r"--build-arg (\w+)", PAGE)) <= arguments
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == arguments
    python = re.search(r"^ARG PYTHON=(.*)$", text, re.M)
    assert python and f"| `PYTHON` | {python[1]} |" in PAGE
