"""`dualign env`: what a bug report needs, wherever it is asked, and nothing that is private."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualign import environment
from dualign.environment import describe_environment

ROOT = Path(__file__).parents[1]


def everything() -> str:
    return "\n".join(
        f"{name}: {value}"
        for section in describe_environment().values()
        for name, value in section.items()
    )


def test_names_of_users_and_passwords_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HF_HOME", "/data/ada/hub")
    monkeypatch.setenv("DUALIGN_CACHE", "/home/grace/cache")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "http://ada:hunter2@proxy:80/x")
    monkeypatch.setenv("DUALIGN_TOKENS", "s3://ada:hunter2@bucket/tokens")
    monkeypatch.setenv("HTTPS_PROXY", "http://ada:hunter2@proxy:80")
    monkeypatch.setattr(sys, "executable", "/home/ada/venv/bin/python")
    text = everything()
    assert "(~/venv/bin/python)" in text
    assert "HF_HOME: /data/USER/hub" in text
    assert "cache: /home/USER/cache" in text
    assert "prepared rows: s3:/bucket/tokens" in text
    assert "PYTORCH_ALLOC_CONF: http://proxy:80/x" in text
    for secret in ("ada", "grace", "hunter2", "HTTPS_PROXY"):
        assert secret not in text


def test_a_name_that_is_a_part_of_another_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HF_HOME", "/data/canada/adapters")
    assert "HF_HOME: /data/canada/adapters" in everything()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DUALIGN_CACHE", "")
    assert "cache: ~/.cache/dualign" in everything()


def test_a_terminal_that_lacks_a_letter_shows_its_number(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "raise ImportError", encoding="utf-8"
    )  # it would take seconds
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "dualign", "env"],
        cwd=tmp_path,
        env={**variables, "DUALIGN_CACHE": "/dät"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert r"cache: /d\xe4t" in done.stdout


def test_the_limit_of_a_container_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("2000000000\n")
    monkeypatch.setattr(environment, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(environment, "_CONTAINER_MARKS", (str(limit),))
    text = everything()
    assert "container: yes" in text
    assert "of which 2.0 GB for this container" in text


@pytest.mark.parametrize("content", ["max\n", None])
def test_no_limit_is_none(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "memory.max"
    if content is not None:
        limit.write_text(content)
    monkeypatch.setattr(environment, "_CGROUP_LIMIT", limit)
    assert "for this container" not in everything()


def test_it_works_in_a_bare_checkout_without_libraries_home_or_git(tmp_path: Path) -> None:
    """`-S` leaves site-packages away: neither torch nor rich, psutil or YAML can be imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from dualign.environment import describe_environment\n"
        "for section in describe_environment().values(): print(section)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        env={"PATH": os.devnull},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "'torch': 'not installed'" in done.stdout
    assert "doesn't work: ModuleNotFoundError: No module named 'torch'" in done.stdout


@pytest.mark.parametrize(
    "failure, line",
    [
        ("RuntimeError('no /srv/home/grace s/lib.so\\nmore')", "no /srv/home/USER/lib.so"),
        ("SystemError()", "no message"),
        ("ImportError(f'{HOME}/lib.so: undefined symbol')", "~/lib.so: undefined symbol"),
    ],
)
def test_a_torch_that_fails_is_named_with_its_error(
    failure: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/grace")
    module = f"HOME = '/home/grace'\nraise {failure}"
    (tmp_path / "torch.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    text = everything()
    assert f"torch: doesn't work: {failure.partition('(')[0]}: {line}" in text
    assert "grace" not in text
