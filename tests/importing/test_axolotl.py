"""Recipes in axolotl's published forms (0.18.0), written for these tests, and what becomes of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dualign.cli.main import main
from dualign.errors import ConfigError
from dualign.importing.importing import Imported, import_recipe
from dualign.importing.tables import read_table
from dualign.importing.writer import write_recipe
from dualign.launcher import launch_settings
from dualign.recipe import load_recipe

FOLDER = Path(__file__).parent / "axolotl"
BASE = {"base_model": "org/model", "learning_rate": 1e-4}
# File -> what is carried over, changed and refused, in numbers, and by name where that isn't as it is.
FILES: dict[str, tuple[tuple[int, int, int], str, str]] = {
    "full_sft": (
        (41, 13, 0),
        "(steps) warmup_ratio chat_template datasets[0].type datasets[1].type val_set_size output_dir sample_packing "
        "eval_sample_packing micro_batch_size bf16 flash_attention special_tokens.pad_token",
        "",
    ),
    "qlora": (
        (27, 13, 5),
        "(steps) load_in_4bit datasets[0].type datasets[0].roles_to_train chat_template chat_template_kwargs "
        "output_dir adapter sample_packing micro_batch_size bf16 gradient_checkpointing attn_implementation",
        "lora_mlp_kernel lr_scheduler loss_watchdog_threshold loss_watchdog_patience hub_model_id",
    ),
    "dpo": (
        (23, 9, 2),
        "chat_template rl datasets[0].type output_dir adapter excess_length_strategy micro_batch_size bf16 warmup_steps",
        "dpo_label_smoothing max_prompt_len",
    ),
    "mid_training": (
        (22, 9, 6),
        "datasets[0].type test_datasets[0].type output_dir sample_packing context_parallel_size deepspeed "
        "micro_batch_size bf16 tiled_mlp",
        "heads_k_stride ring_attn_func optimizer overrides_of_model_config unfrozen_parameters my_own_key",
    ),
}


def keys(imported: Imported, action: Any) -> list[str]:
    return [note.key for note in imported.list_of(action)]


def imported_stage(folder: Path, **theirs: Any) -> tuple[dict[str, Any], Imported]:
    """The stage of a recipe made from some keys, as plain values."""
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump({**BASE, **theirs}, sort_keys=False))
    imported = import_recipe(path)
    return imported.recipe["stages"][0], imported


def with_data(folder: Path, **data_set: Any) -> dict[str, Any]:
    stage, _ = imported_stage(folder, datasets=[{"path": "org/rows", **data_set}])
    return dict(stage["data"]["sources"][0])


@pytest.mark.parametrize("name", FILES)
def test_each_key_of_a_published_form_is_in_its_list_and_the_recipe_loads(
    name: str, tmp_path: Path
) -> None:
    out = tmp_path / f"{name}.yaml"
    imported = import_recipe(FOLDER / f"{name}.yaml", out=out)
    counts, changed, refused = FILES[name]
    assert sorted(keys(imported, "changed")) == sorted(changed.split())
    assert sorted(keys(imported, "refused")) == sorted(refused.split())
    assert tuple(len(imported.list_of(a)) for a in ("carried", "changed", "refused")) == counts
    write_recipe(imported, out)
    assert load_recipe(out, ()).stages[0].config.data.sources[0].path.startswith(str(FOLDER))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_sft", "dpo"])
def test_plan_reads_the_rows_of_what_was_imported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"{name}.yaml"
    assert main(["import", str(FOLDER / f"{name}.yaml"), "--out", str(out)]) == 0
    assert main(["plan", str(out)]) == 0
    assert "training rows" in capsys.readouterr().out


def test_every_documented_key_is_in_the_table() -> None:
    documented = (FOLDER / "documented_keys.txt").read_text().split()
    rows = read_table("axolotl").rows
    above = {key.rpartition(".")[0].removesuffix("[]") for key in rows}
    assert len(documented) == 715
    assert [key for key in documented if key not in rows and key not in above] == []


def test_sft_of_conversations_becomes_sources_with_columns_and_shares_of_steps(
    tmp_path: Path,
) -> None:
    stage = import_recipe(FOLDER / "full_sft.yaml", out=tmp_path / "x.yaml").recipe["stages"][0]
    assert stage["data"]["sources"][0]["columns"] == {
        "messages": "conversations",
        "role": {"from": "from", "user": ["human"], "assistant": ["gpt"], "system": ["system"]},
        "content": "value",
    }
    train = stage["train"]
    assert (train["lr_scheduler_type"], train["lr_scheduler_kwargs"]) == (
        "cosine_with_min_lr",
        {"min_lr_rate": 0.1},
    )
    # 2 measurements and 1 checkpoint in each of 3 epochs
    assert (train["eval_steps"], train["save_steps"]) == (1 / 6, 1 / 3)
    assert (stage["data"]["packing"], stage["data"]["validation_rows"]) == ("best_fit", 0.25)


def test_modes_and_masks_of_the_whole_run_go_to_the_rows(tmp_path: Path) -> None:
    stage = import_recipe(FOLDER / "qlora.yaml", out=tmp_path / "x.yaml").recipe["stages"][0]
    assert stage["data"]["sources"][0]["mode"] == "no_think"
    assert "supervise" not in stage["data"], "the assistant's turns"
    assert (stage["quantization"], stage["lora"]["target_modules"]) == ("nf4", "all-linear")
    assert "lr_scheduler_type" not in stage["train"]
    data = [{"path": "a/b", "type": "chat_template"}]
    stage, _ = imported_stage(
        tmp_path, datasets=data, chat_template_kwargs={"enable_thinking": True, "date": "today"}
    )
    assert stage["data"]["sources"][0]["mode"] == "think"
    assert stage["template_kwargs"] == {"date": "today"}
    stage, _ = imported_stage(tmp_path, datasets=data, train_on_inputs=True)
    assert stage["data"]["supervise"] == "all"


@pytest.mark.parametrize(
    ("keys", "loss", "weights"),
    [
        ({"rl": "dpo"}, "sigmoid", None),
        ({"rl": "dpo", "dpo_loss_type": ["ipo"]}, ["ipo"], None),
        ({"rl": "ipo"}, "ipo", None),
        ({"rl": "orpo"}, "orpo", None),
        ({"rl": "kto"}, "kto", None),
        # TRL's CPOTrainer, which axolotl takes, adds the likelihood of chosen unless cpo_alpha is 0
        ({"rl": "simpo"}, ["simpo", "sft"], [1.0, 1.0]),
        ({"rl": "simpo", "cpo_alpha": 0.5}, ["simpo", "sft"], [1.0, 0.5]),
        ({"rl": "simpo", "cpo_alpha": 0}, "simpo", None),
    ],
)
def test_rl_becomes_a_loss_of_a_preference_stage(
    tmp_path: Path, keys: dict[str, Any], loss: Any, weights: Any
) -> None:
    keys = {"micro_batch_size": 2, "datasets": [{"path": "a/b", "type": "chatml.intel"}], **keys}
    stage, _ = imported_stage(tmp_path, **keys)
    assert stage["kind"] == "preference"
    assert (stage["train"]["loss_type"], stage["train"].get("loss_weights")) == (loss, weights)
    assert (stage["data"]["packing"], stage["template"]) == ("none", "chatml")
    assert stage["data"]["sources"][0]["columns"] == {"prompt": "question"}


@pytest.mark.parametrize(
    ("data_set", "columns"),
    [
        ({"type": "alpaca"}, None),
        ({"type": "gpteacher"}, {"prompt": "{instruction}\n\n{input}", "completion": "response"}),
        ({"type": "completion"}, {"text": "text"}),
        ({"type": "completion", "field": "body"}, {"text": "body"}),
        ({"type": "chat_template", "field_messages": "turns"}, {"messages": "turns"}),
        ({"type": "chat_template", "field_tools": "tools", "field_messages": "messages"}, None),
        (
            {"type": {"field_instruction": "q", "field_input": "c", "field_output": "a"}},
            {"prompt": "{q}\n\n{c}", "completion": "a"},
        ),
        ({"type": {"field_instruction": "q"}}, {"prompt": "q", "completion": "output"}),
    ],
)
def test_fields_of_a_data_set_become_columns(
    tmp_path: Path, data_set: dict[str, Any], columns: Any
) -> None:
    assert with_data(tmp_path, **data_set).get("columns") == columns


def test_each_file_of_a_data_set_is_a_source(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text("{}\n")
    sets = [
        {"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "alpaca", "shards": 4},
        {"path": "c.jsonl", "type": "alpaca"},
    ]
    stage, _ = imported_stage(tmp_path, datasets=sets)
    assert stage["data"]["sources"] == [
        {"path": "a.jsonl", "weight": 0.25},
        {"path": "b.jsonl", "weight": 0.25},
        {"path": "c.jsonl"},
    ]


def test_files_that_are_elsewhere_or_not_there_are_named(tmp_path: Path) -> None:
    sets = [
        {"path": "s3://bucket/rows.jsonl", "type": "alpaca"},
        {"path": "gone.jsonl", "type": "alpaca"},
        {"path": "org/rows", "data_files": "part.jsonl", "type": "alpaca"},
    ]
    _, imported = imported_stage(tmp_path, datasets=sets)
    refused = {note.key: note.says for note in imported.list_of("refused")}
    assert "download it" in refused["datasets[0].path"]
    assert "isn't there" in refused["datasets[1].path"]
    assert "all of it would be read" in refused["datasets[2].data_files"]


@pytest.mark.parametrize(
    ("theirs", "template"),
    [
        ({}, "tokenizer"),
        ({"chat_template": "qwen3"}, "trl:qwen3"),
        ({"chat_template": "tokenizer_default_fallback_chatml"}, "tokenizer"),
        ({"chat_template": "mistral_v7_tekken"}, "tokenizer"),
        ({"chat_template_jinja": "{{ messages }}"}, "x.jinja"),
        ({"chat_template": "jinja", "chat_template_jinja": "mine.jinja"}, "mine.jinja"),
    ],
)
def test_templates_by_name_file_and_text(
    tmp_path: Path, theirs: dict[str, Any], template: str
) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    data = [{"path": "a/b", "type": "chat_template"}]
    stage, imported = imported_stage(tmp_path, datasets=data, **theirs)
    assert stage["template"] == template
    assert dict(imported.files) == ({template: "{{ messages }}"} if template == "x.jinja" else {})
    refused = keys(imported, "refused")
    assert refused == (["chat_template"] if "mistral" in str(theirs) else [])


def test_processes_become_an_accelerate_config_that_the_launcher_reads(tmp_path: Path) -> None:
    out = tmp_path / "x.yaml"
    imported = import_recipe(FOLDER / "mid_training.yaml", out=out)
    write_recipe(imported, out)
    settings = launch_settings(load_recipe(out, ()).stages[0].config.launch)
    assert settings["distributed_type"] == "DEEPSPEED"
    assert settings["deepspeed_config"]["zero_stage"] == 3
    assert settings["deepspeed_config"]["offload_optimizer_device"] == "cpu"
    assert settings["parallelism_config"]["parallelism_config_sp_size"] == 3
    note = next(note for note in imported.notes if note.key == "deepspeed")
    assert "zero_optimization.stage3_prefetch_bucket_size" in note.says
    data = [{"path": "a/b", "type": "chat_template"}]
    theirs = {
        "fsdp_version": 2,
        "fsdp_config": {"offload_params": True, "state_dict_type": "FULL_STATE_DICT"},
    }
    _, imported = imported_stage(tmp_path, datasets=data, **theirs)
    config = yaml.safe_load(imported.files["x-launch.yaml"])["fsdp_config"]
    assert (config["fsdp_offload_params"], config["fsdp_state_dict_type"]) == (
        True,
        "FULL_STATE_DICT",
    )
    _, imported = imported_stage(tmp_path, datasets=data, deepspeed="gone.json")
    assert (keys(imported, "refused"), dict(imported.files)) == (["deepspeed"], {})
    _, imported = imported_stage(tmp_path, datasets=data, deepspeed="deepspeed_configs/zero2.json")
    says = next(note.says for note in imported.notes if note.key == "deepspeed")
    assert says.startswith("ZeRO-2 as an accelerate file beside the recipe (by the file's name")


def test_a_stream_has_steps_and_no_epochs(tmp_path: Path) -> None:
    pretraining = [{"path": "org/web", "name": "en", "text_column": "body", "type": "pretrain"}]
    stage, _ = imported_stage(
        tmp_path, pretraining_dataset=pretraining, max_steps=100, num_epochs=1
    )
    assert stage["data"]["sources"] == [
        {"path": "org/web", "name": "en", "columns": {"text": "body"}}
    ]
    assert stage["data"]["streaming"] is True
    assert "num_train_epochs" not in stage["train"]


@pytest.mark.parametrize(
    ("theirs", "key"),
    [
        ({"learning_rate": None}, "learning_rate"),
        ({"micro_batch_size": "two"}, "micro_batch_size"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "warmup_ratio"),
        ({"adapter": "lora", "lora_alpha": 8, "lora_target_linear": True}, "lora_r"),
        ({"plugins": ["axolotl.integrations.kd.KDPlugin"]}, "plugins"),
        (
            {
                "chat_template": "chatml",
                "datasets": [{"path": "a/b", "type": "chat_template", "chat_template": "llama3"}],
            },
            "datasets[0].chat_template",
        ),
        ({"datasets": [{"path": "a/b", "type": "metharme"}]}, "datasets[0].type"),
        (
            {"datasets": [{"path": "a/b", "type": "chat_template", "train_on_eos": "last"}]},
            "datasets[0].train_on_eos",
        ),
        (
            {"datasets": [{"path": "a/b", "type": "chat_template", "roles_to_train": ["user"]}]},
            "datasets[0].roles_to_train",
        ),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_named(
    tmp_path: Path, theirs: dict[str, Any], key: str
) -> None:
    data = {"datasets": [{"path": "a/b", "type": "chat_template"}]}
    _, imported = imported_stage(tmp_path, **{**data, **theirs})
    assert keys(imported, "refused") == [key]


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"rl": "grpo"}, "rl: grpo: isn't there"),
        ({"reward_model": True}, "reward_model: dualign trains no reward models"),
        ({"streaming": True}, "a stream has no length"),
    ],
)
def test_a_run_that_no_stage_can_do_is_refused(
    tmp_path: Path, theirs: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "x.yaml", tmp_path / "mine.yaml"
    data = [{"path": "a/b", "type": "chat_template"}]
    path.write_text(yaml.safe_dump({**BASE, "datasets": data, **theirs}))
    assert main(["import", str(path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_data_set_by_its_name_alone_is_a_source(tmp_path: Path) -> None:
    stage, _ = imported_stage(
        tmp_path, pretraining_dataset="org/web", max_steps=10, merge_method="legacy"
    )
    assert stage["data"]["sources"] == [{"path": "org/web", "columns": {"text": "text"}}]


def test_other_words_for_the_assistant_are_its_turns(tmp_path: Path) -> None:
    data = [{"path": "a/b", "type": "chat_template", "roles_to_train": ["gpt", "assistant"]}]
    stage, imported = imported_stage(tmp_path, datasets=data)
    assert (keys(imported, "refused"), "supervise" in stage["data"]) == ([], False)


@pytest.mark.parametrize(
    ("theirs", "text", "message"),
    [
        ({"deepspeed": "ds.json"}, "{", "ds.json: not JSON"),
        ({"deepspeed": "ds.json"}, "[1]", "ds.json: expected an object with zero_optimization"),
        ({"chat_template_jinja": "ds.json"}, "\udcff", "ds.json: can't be read as text"),
    ],
)
def test_files_that_cannot_be_read_end_in_one_message(
    tmp_path: Path, theirs: dict[str, Any], text: str, message: str
) -> None:
    (tmp_path / "ds.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    data = [{"path": "a/b", "type": "chat_template"}]
    with pytest.raises(ConfigError, match=message):
        imported_stage(tmp_path, datasets=data, **theirs)


@pytest.mark.parametrize(
    "zero", [{"stage": "two"}, [1], None, {"stage": 2, "offload_param": "cpu"}]
)
def test_a_deepspeed_config_of_odd_values_still_becomes_a_launch_file(
    tmp_path: Path, zero: Any
) -> None:
    data = [{"path": "a/b", "type": "chat_template"}]
    _, imported = imported_stage(tmp_path, datasets=data, deepspeed={"zero_optimization": zero})
    config = yaml.safe_load(imported.files["x-launch.yaml"])["deepspeed_config"]
    assert config["zero_stage"] == (2 if zero == {"stage": 2, "offload_param": "cpu"} else 0)
    assert config["offload_param_device"] == "none"


def test_a_model_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = [{"path": "a/b", "type": "chat_template"}]
    _, imported = imported_stage(tmp_path, base_model="./gone", datasets=data)
    assert keys(imported, "refused") == ["base_model"]


def test_what_is_switched_off_or_empty_is_as_here(tmp_path: Path) -> None:
    data = [{"path": "a/b", "type": "chat_template"}]
    theirs = {
        "load_in_4bit": False,
        "adapter": "",
        "dataset_exact_deduplication": False,
        "fsdp": [],
        "fsdp_config": {},
        "deepspeed": None,
        "special_tokens": None,
    }
    stage, imported = imported_stage(tmp_path, datasets=data, **theirs)
    assert keys(imported, "refused") == []
    assert not {"quantization", "lora", "launch"} & set(stage)


def test_sizes_of_groups_leave_the_launch_file_as_it_is(tmp_path: Path) -> None:
    data = [{"path": "a/b", "type": "chat_template"}]
    theirs = {"fsdp_config": {"offload_params": True}, "fsdp_version": 2, "dp_shard_size": 8}
    stage, imported = imported_stage(tmp_path, datasets=data, **theirs)
    assert (stage["launch"], keys(imported, "refused")) == ("x-launch.yaml", [])
    stage, _ = imported_stage(tmp_path, datasets=data, dp_shard_size=8)
    assert "launch" not in stage
