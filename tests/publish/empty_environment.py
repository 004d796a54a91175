"""An environment that holds what a card tells people to install, and nothing of ours."""

import subprocess
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they need, without extras."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # a choice of several, of which another is installed
        found.add(name)
        wanted = [Requirement(text) for text in requires]
        left += [
            canonicalize_name(entry.name)
            for entry in wanted
            if entry.marker is None or entry.marker.evaluate({"extra": ""})
        ]
    return found


def empty_environment(place: Path, *names: str) -> Path:
    """Its Python. The distributions are links to those of this environment: their files are the same."""
    venv.create(place, with_pip=False, symlinks=True)
    site = next((place / "lib").glob("python*/site-packages"))
    for name in needed(names):
        whole = metadata.distribution(name)
        tops = {file.parts[0] for file in whole.files or () if file.parts[0] not in ("..", "bin")}
        for top in tops - {"__pycache__"}:
            source = Path(str(whole.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    python = place / "bin" / "python"
    for absent in {"dualign", "trl", "datasets"} - set(names):
        command = [python, "-c", f"import {absent}"]
        done = subprocess.run(command, env={}, cwd=place, capture_output=True, check=False)
        assert done.returncode == 1, f"{absent} is there"
    return python
