"""`import dualign`: light, and every example of docs/api.md runs on a tiny model."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dualign
from dualign.errors import ConfigError
from dualign.report.runs import StageRun
from tests.chat_model import make_model, make_tokenizer
from tests.pipeline.test_tiny_road import SCRIPT

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (\w+)\n.*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
FUNCTIONS = sorted(set(dualign.__all__) - {"__version__"})
RECIPE = {
    "name": "sums",
    "output_dir": "runs/sums",
    "stages": [
        {
            "name": "sft",
            "kind": "sft",
            "model": "base",
            "lora": {"r": 2},
            "data": {"sources": [{"path": "train.jsonl"}], "max_tokens": 256},
            "train": {"max_steps": 2, "logging_steps": 1, "gradient_checkpointing": False},
        }
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: recipe, rows, task and model, and a run of the recipe in runs/mine."""
    folder = tmp_path_factory.mktemp("api")
    tokenizer = make_tokenizer()
    make_model(tokenizer, width=16).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "make.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "make.py", "--out", "."], cwd=folder, check=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def stages(folder: Path) -> dict[str, StageRun]:
    recipe = dualign.load_recipe(folder / "recipe.yaml", f"output_dir={folder}/runs/mine")
    return dualign.run(recipe, say=lambda text: None)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_each_function_runs(
    name: str,
    folder: Path,
    stages: dict[str, StageRun],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = EXAMPLES[name]
    assert f"dualign.{name}(" in example and len(example.splitlines()) <= 20
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(example, f"docs/api.md: {name}", "exec"), names)
    assert capsys.readouterr().out
    for value in names.values():
        if hasattr(type(value), "_repr_html_"):  # what a notebook shows
            assert value._repr_html_().count("<tr>") >= 2


def test_a_stage_prints_as_one_line(stages: dict[str, StageRun]) -> None:
    assert repr(stages["sft"]).startswith("StageRun(path=")
    assert len(repr(stages["sft"])) < 300


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_says_what_it_takes_and_returns(name: str) -> None:
    function = getattr(__import__("dualign.api", fromlist=[name]), name)
    signature, text = inspect.signature(function), inspect.getdoc(function) or ""
    assert signature.return_annotation is not inspect.Signature.empty
    assert "Returns:" in text and ("Raises:" in text or "errors are those of" in text)
    if "Args:" in text:
        documented = re.findall(r"^    (\w+): ", text, re.MULTILINE)
        assert documented[: len(signature.parameters)] == list(signature.parameters)
    assert f"::: dualign.api.{name}" in PAGE


def test_importing_dualign_imports_nothing_of_it_and_takes_a_moment() -> None:
    code = (
        "import sys; before = set(sys.modules); import dualign; assert dir(dualign)\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('dualign')))\n"
        "dualign.load_recipe('quickstart')\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['dualign', 'dualign.version']", "[]"]


def test_publish_is_callable_after_its_room_is_imported() -> None:
    import dualign.publish.lineage

    assert callable(dualign.publish)
    assert dualign.publish.lineage.read_lineage
    assert {"publish", "run", "load_recipe"} <= set(dir(dualign))
    with pytest.raises(AttributeError, match="no attribute 'publishh'"):
        _ = dualign.publishh


def test_arguments_are_checked_like_the_keys_of_a_recipe(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_tokns: unknown key \(did you mean 'max_tokens'"):
        dualign.prepare_sft({"sources": [], "max_tokns": 3}, model=str(folder / "base"))
    with pytest.raises(ConfigError, match="rows: expected 1 or more, found 0"):
        dualign.evaluate("base", ["sums.yaml"], folder / "none", rows=0)
    with pytest.raises(ConfigError, match="no such file, and no recipe of that name ships"):
        dualign.run("quickstrt")
    with pytest.raises(ConfigError, match="is a folder without"):
        dualign.run(str(folder / "base"))
