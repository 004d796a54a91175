"""Files as people have them: merged mappings, numbers as text, one name in place of a list, an empty limit."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dualign.errors import ConfigError
from dualign.importing.importing import Imported, import_recipe
from dualign.importing.writer import write_recipe
from dualign.recipe import load_recipe

AXOLOTL = {
    "base_model": "embedded:smollm2-135m-instruct",
    "datasets": [{"path": "owner/rows", "type": "chat_template"}],
    "learning_rate": 1e-4,
}
TRL = {"model_name_or_path": "embedded:smollm2-135m-instruct", "packing_strategy": "bfd"}
FACTORY = {
    "model_name_or_path": "embedded:smollm2-135m-instruct",
    "finetuning_type": "lora",
    "dataset_dir": "ONLINE",
    "dataset": "owner/rows",
}


def imported(folder: Path, keys: dict[str, Any] | str) -> Imported:
    """Import a file, and load the recipe that is written into another folder."""
    folder.mkdir(exist_ok=True)
    path, out = folder / "theirs.yaml", folder / "mine" / "recipe.yaml"
    path.write_text(keys if isinstance(keys, str) else yaml.safe_dump(keys, sort_keys=False))
    result = import_recipe(path, out=out)
    write_recipe(result, out)
    load_recipe(out, ())
    return result


def stage_of(result: Imported) -> dict[str, Any]:
    stage: dict[str, Any] = result.recipe["stages"][0]
    return stage


def refused(result: Imported) -> dict[str, str]:
    return {note.key: note.says for note in result.list_of("refused")}


def test_a_key_of_its_own_takes_the_place_of_a_merged_one(tmp_path: Path) -> None:
    text = (
        "base_model: embedded:smollm2-135m-instruct\n"
        "datasets:\n"
        "  - &rows {path: a/b, type: chat_template, split: train, shards: 2}\n"
        "  - {<<: *rows, path: c/d}\n"
        "  - {<<: *rows, path: e/f, shards: 4}\n"
        "learning_rate: 1e-4\n"
    )
    sources = stage_of(imported(tmp_path, text))["data"]["sources"]
    assert sources == [
        {"path": "a/b", "split": "train", "weight": 0.5},
        {"path": "c/d", "split": "train", "weight": 0.5},
        {"path": "e/f", "split": "train", "weight": 0.25},
    ]
    with pytest.raises(ConfigError, match=r"theirs.yaml:2: datasets\[0\].path: given twice"):
        imported(tmp_path, "base_model: a\ndatasets: [{path: a, path: b}]\n")


def test_a_value_that_is_refused_takes_nothing_else_with_it(tmp_path: Path) -> None:
    keys = {"adapter": "qlora", "lora_r": "x", "lora_alpha": 16, "lora_target_modules": ["q", 2]}
    result = imported(tmp_path, {**AXOLOTL, **keys})
    assert stage_of(result)["quantization"] == "nf4"
    assert stage_of(result)["lora"] == {"lora_alpha": 16}
    assert set(refused(result)) == {"lora_r", "lora_target_modules"}
    assert refused(result)["lora_target_modules"].count("dualign refuses") == 1


def test_no_in_yaml_is_no_strategy(tmp_path: Path) -> None:
    keys = {"save_strategy": False, "eval_strategy": False, "val_set_size": 0.1}
    result = imported(tmp_path, {**AXOLOTL, **keys})
    assert stage_of(result)["train"]["save_strategy"] == "no"
    assert stage_of(result)["train"]["eval_strategy"] == "no"
    assert "eval_on_start" not in stage_of(result)["train"]
    assert not refused(result)


def test_no_roles_and_no_flags_learn_nothing_in_axolotl_which_is_said(tmp_path: Path) -> None:
    rows = {"path": "a/b", "type": "chat_template", "roles_to_train": []}
    result = imported(tmp_path, {**AXOLOTL, "datasets": [rows]})
    assert "axolotl learns nothing" in refused(result)["datasets[0].roles_to_train"]


@pytest.mark.parametrize(
    ("name", "stage", "optimizer", "param"),
    [
        ("zero1_torch_compile", 1, "none", "none"),
        ("zero2", 2, "none", "none"),
        ("ds_z2_offload_config", 2, "cpu", "none"),
        ("ds_z3_offload_config", 3, "cpu", "cpu"),
        ("zero3_bf16", 3, "none", "none"),
        ("zero3_bf16_cpuoffload_all", 3, "cpu", "cpu"),
        ("zero3_bf16_cpuoffload_params", 3, "none", "cpu"),
    ],
)
def test_names_of_files_that_ship_say_what_is_in_them(
    tmp_path: Path, name: str, stage: int, optimizer: str, param: str
) -> None:
    result = imported(tmp_path, {**AXOLOTL, "deepspeed": f"deepspeed_configs/{name}.json"})
    config = yaml.safe_load(result.files["recipe-launch.yaml"])["deepspeed_config"]
    assert config["zero_stage"] == stage
    assert (config["offload_optimizer_device"], config["offload_param_device"]) == (
        optimizer,
        param,
    )


def test_what_is_off_there_and_on_here_is_said(tmp_path: Path) -> None:
    keys = {"shuffle_merged_datasets": False, "curriculum_sampling": False}
    result = imported(tmp_path, {**AXOLOTL, **keys})
    assert "train_sampling_strategy: sequential" in refused(result)["shuffle_merged_datasets"]
    factory = imported(tmp_path / "factory", {**FACTORY, "ignore_pad_token_for_loss": False})
    assert refused(factory) == {"ignore_pad_token_for_loss": "padding is never learned"}


def test_the_schedule_of_a_least_rate_is_the_only_one(tmp_path: Path) -> None:
    keys = {"cosine_min_lr_ratio": 0.1, "lr_scheduler_kwargs": {"num_cycles": 2}}
    result = imported(tmp_path, {**AXOLOTL, **keys})
    assert stage_of(result)["train"]["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert refused(result) == {"lr_scheduler_kwargs": "cosine_min_lr_ratio says the schedule"}


def test_deepspeed_in_a_file_of_trl_launches_the_stage(tmp_path: Path) -> None:
    result = imported(tmp_path, {**TRL, "dataset_name": "a/b", "deepspeed": "zero2.json"})
    assert stage_of(result)["launch"] == "recipe-launch.yaml"
    launch = yaml.safe_load(result.files["recipe-launch.yaml"])
    assert launch["deepspeed_config"]["zero_stage"] == 2


def test_what_trl_does_without_a_limit_or_with_a_system_prompt_is_said(tmp_path: Path) -> None:
    keys = {"dataset_name": "a/b", "max_length": None, "system_prompt": "You are brief."}
    result = imported(tmp_path, {**TRL, **keys, "assistant_only_loss": False})
    assert "TRL cuts nothing then" in refused(result)["max_length"]
    assert "columns: {system: {value: TEXT}}" in refused(result)["system_prompt"]
    assert stage_of(result)["data"]["max_tokens"] == 1024
    changed = {note.key: note.says for note in result.list_of("changed")}
    assert "such rows need supervise: last" in changed["assistant_only_loss"]


def test_files_of_one_set_have_its_fraction_together(tmp_path: Path) -> None:
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / name).touch()
    sets = [
        {"path": "a/b", "fraction": 2},
        {"path": "json", "data_files": ["x.jsonl", "y.jsonl"], "fraction": "1"},
        {"path": "c/d", "fraction": 1},
    ]
    result = imported(tmp_path, {**TRL, "datasets": sets})
    sources = stage_of(result)["data"]["sources"]
    assert [source.get("share") for source in sources] == [0.5, 0.125, 0.125, None]
    assert sources[1]["path"] == "../x.jsonl"
    (tmp_path / "y.jsonl").unlink()
    says = refused(import_recipe(tmp_path / "theirs.yaml"))["datasets[1].data_files"]
    assert says.startswith("y.jsonl: isn't there")


def test_one_name_stands_for_a_list_of_one(tmp_path: Path) -> None:
    keys = {"dataset_mixer": {"a/b": 0.5}, "dataset_splits": "train_sft", "dataset_configs": "en"}
    sources = stage_of(imported(tmp_path, {**TRL, **keys}))["data"]["sources"]
    assert sources == [{"path": "a/b", "name": "en", "split": "train_sft", "weight": 0.5}]


@pytest.mark.parametrize("keys", [{"datasets": ["a/b"]}, {"dataset_mixture": {"datasets": ["a"]}}])
def test_sets_without_keys_are_one_message(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        imported(tmp_path, {**TRL, **keys})


def test_numbers_that_are_text_are_numbers(tmp_path: Path) -> None:
    keys = {"lora_rank": "16", "val_size": "0.1", "max_samples": "50"}
    stage = stage_of(imported(tmp_path, {**FACTORY, **keys}))
    assert (stage["lora"]["r"], stage["lora"]["lora_alpha"]) == (16, 32)
    assert stage["data"]["validation_rows"] == 0.1
    assert stage["data"]["sources"][0]["rows"] == 50
    kto = {"stage": "kto", "per_device_train_batch_size": "1", "gradient_accumulation_steps": "8"}
    train = stage_of(imported(tmp_path / "kto", {**FACTORY, **kto}))["train"]
    assert (train["per_device_train_batch_size"], train["gradient_accumulation_steps"]) == (8, 1)


def test_probabilities_that_are_no_numbers_are_one_message(tmp_path: Path) -> None:
    keys = {"dataset": "a/b,c/d", "mix_strategy": "interleave_over", "interleave_probs": "x,1"}
    with pytest.raises(ConfigError, match="interleave_probs: could not convert"):
        imported(tmp_path, {**FACTORY, **keys})


def test_smoothing_that_the_loss_has_not_there_is_no_part_of_it_here(tmp_path: Path) -> None:
    entry = {"pairs": {"hf_hub_url": "a/b", "ranking": True}}
    keys = {"stage": "dpo", "dataset_dir": entry, "dataset": "pairs", "dpo_label_smoothing": 0.1}
    simpo = imported(tmp_path, {**FACTORY, **keys, "pref_loss": "simpo"})
    assert "label_smoothing" not in stage_of(simpo)["train"]
    assert stage_of(simpo)["train"]["beta"] == 0.1
    assert "sigmoid alone, not simpo" in refused(simpo)["dpo_label_smoothing"]
    train = stage_of(imported(tmp_path / "dpo", {**FACTORY, **keys}))["train"]
    assert (train["loss_type"], train["label_smoothing"]) == ("robust", 0.1)


def test_a_loss_that_differs_is_in_the_second_list(tmp_path: Path) -> None:
    orpo = {"model_name_or_path": "a/b", "dataset_name": "a/b", "beta": 0.1}
    (tmp_path / "orpo").mkdir()
    path = tmp_path / "orpo" / "config.yaml"
    path.write_text(yaml.safe_dump(orpo))
    changed = {note.key: note.says for note in import_recipe(path).list_of("changed")}
    assert "ORPOTrainer counts the prompt too" in changed["loss_type"]
    path.write_text(yaml.safe_dump({**orpo, "loss_type": "kto_pair"}))
    changed = {note.key: note.says for note in import_recipe(path).list_of("changed")}
    assert "bco_pair is the nearest" in changed["loss_type"]


def test_a_form_writes_its_system_text_where_a_column_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"instruction": "q", "output": "a", "system": "S"}]')
    entry = {"mine": {"file_name": "rows.json"}}
    keys = {"dataset_dir": entry, "dataset": "mine", "template": "vicuna"}
    recipe = imported(tmp_path, {**FACTORY, **keys})
    assert stage_of(recipe)["data"]["sources"][0]["columns"]["system"] == {"value": ""}
    assert "A chat between a curious user" in recipe.files["vicuna.jinja"]


def test_raw_text_says_how_it_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    path = tmp_path / "theirs.yaml"
    keys = {"stage": "pt", "dataset_dir": {"a": {"file_name": "a.txt"}}, "dataset": "a"}
    changed = []
    for more in ({}, {"packing": False}):
        path.write_text(yaml.safe_dump({**FACTORY, **keys, **more}))
        changed.append({note.key: note.says for note in import_recipe(path).list_of("changed")})
    assert "each of its lines is one" in changed[0]["dataset_info[0].file_name"]
    assert changed[0]["cutoff_len"] == "documents are joined and cut at this length, as there"
    assert "here a row is left out" in changed[1]["packing"]
    assert "cuts longer rows" in changed[1]["cutoff_len"]
