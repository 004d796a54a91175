"""The seam of all tools: whose file it is, what becomes of its keys, what is written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dualign.cli.main import main
from dualign.config import read_yaml
from dualign.errors import ConfigError
from dualign.importing.importing import Imported, import_recipe
from dualign.importing.tools import TOOLS, choose_tool
from dualign.importing.writer import recipe_text, write_recipe, yaml_lines
from dualign.recipe import load_recipe

SMALL = {
    "base_model": "embedded:smollm2-135m-instruct",
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "learning_rate": 1e-4,
    "num_epochs": 2,
}


def file_of(folder: Path, **keys: Any) -> Path:
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **keys}, sort_keys=False))
    (folder / "rows.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    return path


def notes_of(imported: Imported) -> dict[str, str]:
    return {note.key: note.action for note in imported.notes}


def test_every_key_of_the_file_is_in_exactly_one_list_and_the_recipe_loads(tmp_path: Path) -> None:
    path = file_of(tmp_path, lisa_n_layers=4, made_up=1, micro_batch_size=2)
    imported = import_recipe(path, out=tmp_path / "mine.yaml")
    assert [note.key for note in imported.notes if note.line] == [
        "base_model",
        "datasets[0].path",
        "datasets[0].type",
        "learning_rate",
        "num_epochs",
        "lisa_n_layers",
        "made_up",
        "micro_batch_size",
    ]
    assert len(notes_of(imported)) == len(imported.notes)
    assert notes_of(imported)["made_up"] == notes_of(imported)["lisa_n_layers"] == "refused"
    assert notes_of(imported)["micro_batch_size"] == "changed"
    write_recipe(imported, tmp_path / "mine.yaml")
    stage = load_recipe(tmp_path / "mine.yaml", ()).stages[0].config
    assert (stage.train["learning_rate"], stage.train["num_train_epochs"]) == (1e-4, 2)
    assert stage.data.sources[0].path == str(tmp_path / "rows.jsonl")


def test_a_default_that_differs_is_set_and_noted(tmp_path: Path) -> None:
    imported = import_recipe(file_of(tmp_path))
    note = next(note for note in imported.notes if note.key == "lr_scheduler")
    assert (note.line, note.target, note.value) == (0, "train.lr_scheduler_type", "cosine")
    assert imported.recipe["stages"][0]["train"]["lr_scheduler_type"] == "cosine"


def test_what_dualign_refuses_is_out_of_the_recipe_and_in_the_third_list(tmp_path: Path) -> None:
    path = file_of(tmp_path, optimizer="adamw_torch_fuzed", warmup_steps=-1)
    imported = import_recipe(path, out=tmp_path / "mine.yaml")
    refused = {note.key: note.says for note in imported.list_of("refused")}
    assert "adamw_torch_fuzed" in refused["optimizer"]
    assert "expected 0 or more, found -1" in refused["warmup_steps"]
    write_recipe(imported, tmp_path / "mine.yaml")
    assert "optim" not in load_recipe(tmp_path / "mine.yaml", ()).stages[0].config.train


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("- a\n- b\n", "expected keys with values, found a list"),
        ("a: [1\n", "not YAML"),
        ("base_model: a\nbase_model: b\n", "given twice"),
        ("made_up: 1\n", "its keys (made_up) are signs of no tool"),
        ("stages: []\n", "is a recipe of dualign"),
        ("merge_method: ties\n", "`dualign merge` takes it as it is"),
        ("base_model: a\n", "datasets: expected a list of data sets, found none"),
        ("num_epochs: 1\ndatasets: [{path: a}]\n", "base_model: isn't there"),
        ("base_model: 7\ndatasets: [{path: a}]\n", "base_model: expected text, found 7"),
    ],
)
def test_bad_input_ends_in_one_message(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "theirs.yaml", tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["import", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert not out.exists()


def test_the_command_prints_the_lists_and_writes_only_what_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = file_of(tmp_path, made_up=1), tmp_path / "mine.yaml"
    assert main(["import", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "Can't be carried over: 1" in shown
    assert "is in no table of keys" in shown
    assert "nothing was written" in shown
    assert sorted(tmp_path.iterdir()) == [tmp_path / "rows.jsonl", path]
    assert main(["import", str(path), "--out", str(out)]) == 0
    out.write_text("mine: 1\n")
    assert main(["import", str(path), "--out", str(out)]) == 2
    assert "there already" in capsys.readouterr().err
    assert out.read_text() == "mine: 1\n"
    assert main(["import", str(path), "--out", str(out), "--force"]) == 0
    assert load_recipe(out, ()).name == "mine"
    assert main(["import", str(path), "--out", str(path), "--force"]) == 2
    assert "is the file that is read" in capsys.readouterr().err


def test_the_lists_stand_at_the_top_of_the_recipe(tmp_path: Path) -> None:
    text = recipe_text(import_recipe(file_of(tmp_path, made_up=1, micro_batch_size=2)))
    head = text.split("\nname:")[0]
    assert "# Can't be carried over: 1\n#   made_up (line 7): is in no table" in head
    assert "#   micro_batch_size (line 8): -> train.per_device_train_batch_size" in head
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert "      # effective batch = this x accumulation x processes" in text


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"b": [1, 2.5, True, None, "yes", "1e-3", "", "- a", "a: b", "#x", "null", "~"]}},
        {"a": [{"b": 1, "c": {"d": "x\ny", "e": {}, "f": []}}, {"b": [{"x": "{a}\n\n{b}"}]}]},
        {"1e-3": "on", "a b": 1e-5, "c": float("inf"), "d": "12:30", "e": "2026-01-01", "f": "é"},
    ],
)
def test_written_values_are_read_back(tmp_path: Path, value: dict[str, Any]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(yaml_lines(value, {})))
    assert read_yaml(path).value == value


def test_signs_are_of_one_tool_and_several_signs_are_ambiguous() -> None:
    signs = [sign for tool in TOOLS for sign in tool.table.signs]
    assert len(signs) == len(set(signs))
    with pytest.raises(ConfigError, match="signs of no tool; say which tool's it is: --from"):
        choose_tool(["learning_rate"], "x.yaml")
    assert choose_tool(["learning_rate"], "x.yaml", "axolotl").name == "axolotl"


MIXED = """{"prompt": "1 + 1?", "completion": "2"}
{"prompt": "1 + 2?", "completion": "<think>\\none more is 3\\n</think>\\n\\n3"}
"""


def test_rows_of_both_modes_get_a_template_that_switches_them(tmp_path: Path) -> None:
    """Bare ChatML asks both modes in one way, so a run would end where its rows are read."""
    path, out = file_of(tmp_path, chat_template="chatml"), tmp_path / "mine.yaml"
    imported = import_recipe(path, out=out)
    assert imported.recipe["stages"][0]["template"] == "chatml", "rows of one mode"
    (tmp_path / "rows.jsonl").write_text(MIXED)
    imported = import_recipe(path, out=out)
    (note,) = (note for note in imported.list_of("refused") if note.key == "chat_template")
    assert "rows.jsonl, row 1 is think" in note.says and "row 0 is no_think" in note.says
    write_recipe(imported, out)
    assert load_recipe(out, ()).stages[0].config.template == "dualign"


def test_a_template_file_without_a_switch_is_not_written_for_rows_of_both_modes(
    tmp_path: Path,
) -> None:
    text = "{%- for m in messages -%}{{- m.role + ': ' + m.content + eos_token -}}{%- endfor -%}"
    path = file_of(tmp_path, chat_template_jinja=text)
    assert import_recipe(path).files
    (tmp_path / "rows.jsonl").write_text(MIXED)
    assert not import_recipe(path).files
    path.write_text(path.read_text().replace("{%- endfor", "{#- thinking -#}{%- endfor"))
    assert import_recipe(path).files, "it may switch"


def test_what_omegaconf_fills_in_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    keys = {"model_name_or_path": "${oc.env:BASE}", "stage": "sft", "output_dir": "out/${stage}"}
    path.write_text(yaml.safe_dump({**keys, "dataset": "rows", "template": "qwen3"}))
    with pytest.raises(ConfigError, match="OmegaConf") as error:
        import_recipe(path)
    assert "model_name_or_path: '${oc.env:BASE}'" in str(error.value)
    assert "output_dir: 'out/${stage}'" in str(error.value)
