"""Files in LLaMA-Factory's published form: what becomes of their keys, and rows in its forms."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dualign.cli.main import main
from dualign.data.config import SourceConfig
from dualign.data.rows.sources import to_conversation, to_pair, to_rated
from dualign.errors import ConfigError
from dualign.importing.importing import import_recipe
from dualign.importing.tables import read_table
from dualign.training.arguments import DPO_ARGUMENTS, SFT_ARGUMENTS

from .reading import brought, says, sizes

FILES = Path(__file__).parent / "llama_factory"
SMALL: dict[str, Any] = {
    "model_name_or_path": "Qwen/Qwen3-1.7B",
    "stage": "sft",
    "finetuning_type": "lora",
    "dataset": "sums",
    "template": "qwen3",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a user: recipes, data sets, a DeepSpeed file."""
    return Path(shutil.copytree(FILES, tmp_path / "theirs"))


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **keys}, sort_keys=False))
    return path


def rows_of(source: SourceConfig) -> list[dict[str, Any]]:
    text = Path(source.path).read_text(encoding="utf-8")
    lines = [text] if source.path.endswith(".json") else text.splitlines()
    rows = [json.loads(line) for line in lines]
    return rows[0] if isinstance(rows[0], list) else rows


def turns(messages: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_every_documented_key_has_a_row_or_is_an_argument_of_the_installed_transformers() -> None:
    documented = yaml.safe_load((FILES / "keys.yaml").read_text())
    rows = read_table("llama_factory").rows
    arguments = SFT_ARGUMENTS.names() | DPO_ARGUMENTS.names()
    fields = [f"dataset_info[].{name}" for name in documented.pop("dataset_info")]
    keys = [key for part in documented.values() for key in part]
    assert len(keys) == 267
    assert not [key for key in [*keys, *fields] if key not in rows and key not in arguments]


def test_a_lora_recipe_with_its_data_sets(folder: Path) -> None:
    imported, stage = brought(folder / "lora_sft.yaml")
    assert sizes(imported) == [44, 11, 2]
    assert [note.key for note in imported.list_of("changed")] == [
        *("flash_attn", "enable_liger_kernel", "template", "cutoff_len", "max_samples"),
        *("mask_history", "default_system", "overwrite_cache", "gradient_accumulation_steps"),
        *("(rows)", "enable_thinking"),
    ]
    assert [note.key for note in imported.list_of("refused")] == [
        "trust_remote_code",
        "overwrite_output_dir",
    ]
    assert (stage.lora.r, stage.lora.lora_alpha) == (8, 16)
    assert stage.lora.target_modules == ("q_proj", "v_proj")
    assert stage.lora.use_rslora
    assert (stage.template, stage.data.packing, stage.data.supervise) == (
        "tokenizer",
        "best_fit",
        "last",
    )
    assert [source.rows for source in stage.data.sources] == [500, 500, 500]
    assert [source.validation for source in stage.data.sources] == [False, False, True]
    assert stage.train["warmup_steps"] == 0.1


def test_a_full_recipe_with_a_deepspeed_file(folder: Path) -> None:
    imported, stage = brought(folder / "full_sft.yaml")
    assert sizes(imported) == [31, 9, 0]
    launch = yaml.safe_load(Path(stage.launch).read_text())
    assert launch["distributed_type"] == "DEEPSPEED"
    assert launch["mixed_precision"] == "bf16"
    assert launch["deepspeed_config"] == {
        "zero_stage": 3,
        "offload_optimizer_device": "cpu",
        "offload_param_device": "cpu",
        "zero3_init_flag": True,
        "zero3_save_16bit_model": True,
        "deepspeed_multinode_launcher": "standard",
    }
    action, sentence = says(imported, "deepspeed")
    assert action == "changed"
    assert "left to DeepSpeed's defaults: zero_optimization.overlap_comm" in sentence
    assert stage.lora is None
    assert stage.early_stopping.patience == 3
    assert "load_best_model_at_end" not in stage.train
    assert [source.share for source in stage.data.sources] == [0.75, None]
    assert stage.data.validation_rows == 0.1
    assert stage.train["loss_type"] == "dft"


def test_a_preference_recipe_with_pairs_of_both_forms(folder: Path) -> None:
    imported, stage = brought(folder / "lora_dpo.yaml")
    assert sizes(imported) == [30, 10, 1]
    assert stage.train["loss_type"] == ["sigmoid", "sft"]
    assert stage.train["loss_weights"] == [1.0, 0.5]
    assert (stage.train["beta"], stage.train["learning_rate"]) == (0.2, 5e-5)
    assert stage.model == "Qwen/Qwen3-1.7B+saves/qwen3-1.7b/lora/sft"
    assert stage.quantization == "nf4"
    assert [note.key for note in imported.list_of("refused")] == ["ref_model"]
    assert "the reference is the model with them" in says(imported, "adapter_name_or_path")[1]
    choices, answers = stage.data.sources
    pair = to_pair(rows_of(choices)[0], source=choices, index=0)
    assert turns(pair.prompt) == [("user", "Hi"), ("assistant", "Hello!"), ("user", "2 + 2?")]
    assert (turns(pair.chosen), turns(pair.rejected)) == (
        [("assistant", "4")],
        [("assistant", "5")],
    )
    pair = to_pair(rows_of(answers)[0], source=answers, index=0)
    assert turns(pair.prompt) == [("user", "Which is larger?\n1 or 2")]
    assert (turns(pair.chosen), pair.chosen[0].thinking) == ([("assistant", "2")], None)
    assert (pair.mode, pair.repairs) == ("no_think", ("strip_thinking",))


def test_answers_that_were_liked_or_not(folder: Path) -> None:
    imported, stage = brought(folder / "lora_kto.yaml")
    assert sizes(imported) == [21, 4, 0]
    assert stage.train["loss_type"] == "kto"
    assert stage.train["undesirable_weight"] == 1.3
    # KTO takes batches of two rows or more: eight steps of one row become one of eight.
    assert stage.train["per_device_train_batch_size"] == 8
    assert stage.train["gradient_accumulation_steps"] == 1
    (source,) = stage.data.sources
    rated = [to_rated(row, source=source, index=0) for row in rows_of(source)]
    assert [(turns(row.answer), row.desirable) for row in rated] == [
        ([("assistant", "6")], True),
        ([("assistant", "6")], False),
    ]


def test_a_row_keeps_its_own_system_text_beside_a_default(folder: Path) -> None:
    info = folder / "data" / "dataset_info.json"
    info.write_text(info.read_text().replace('"system": "role"', '"system": "system"'))
    _, stage = brought(written(folder, default_system="Be kind.", dataset="sums,chats"))
    sums, chats = stage.data.sources
    assert sums.columns["system"] == "system"
    row = rows_of(chats)[0]
    own = {"speaker": "system", "said": "Be brief."}
    row["dialog"] = [own, *(turn for turn in row["dialog"] if turn["speaker"] != "system")]
    assert to_conversation(row, source=chats, index=0).messages[0].content == "Be brief."


def test_the_default_text_of_a_form_is_in_its_template(folder: Path) -> None:
    _, stage = brought(written(folder, template="alpaca", dataset="customers"))
    environment = ImmutableSandboxedEnvironment()
    template = environment.from_string(Path(stage.template).read_text())
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    own = [{"role": "system", "content": "Be brief."}, *talk]
    rest = "### Instruction:\nHi\n\n### Response:\nYes</s>\n\n"
    default = "Below is an instruction that describes a task. "
    default += "Write a response that appropriately completes the request.\n\n"
    assert template.render(messages=talk, eos_token="</s>") == default + rest
    assert template.render(messages=own, eos_token="</s>") == "Be brief." + rest


def test_rows_become_the_conversations_that_llama_factory_reads(folder: Path) -> None:
    _, stage = brought(folder / "lora_sft.yaml")
    sums, chats, held_out = stage.data.sources
    first, second = (to_conversation(row, source=sums, index=0) for row in rows_of(sums))
    assert turns(first.messages) == [
        ("system", "You add."),
        ("user", "Add the numbers.\n2 and 3"),
        ("assistant", "5"),
    ]
    assert (first.mode, first.messages[-1].thinking) == ("think", "2 + 3 = 5")
    assert turns(second.messages) == [("user", "Say hello."), ("assistant", "Hello.")]
    assert second.mode == "no_think"
    chat = to_conversation(rows_of(chats)[0], source=chats, index=0)
    assert [message.role for message in chat.messages] == [
        *("system", "user", "assistant", "tool", "assistant")
    ]
    (call,) = chat.messages[2].tool_calls
    assert call["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert chat.tools[0]["name"] == "weather"
    # `history` isn't among its columns, so LLaMA-Factory doesn't read it.
    row = to_conversation(rows_of(held_out)[0], source=held_out, index=0)
    assert turns(row.messages)[1:] == [("user", "Count to three."), ("assistant", "1, 2, 3")]


def test_speakers_of_other_names_are_mapped(folder: Path) -> None:
    _, stage = brought(folder / "full_sft.yaml")
    source = stage.data.sources[1]
    chat = to_conversation(rows_of(source)[0], source=source, index=0)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


@pytest.mark.slow
def test_the_imported_recipe_plans_and_its_rows_are_prepared(
    folder: Path, shrunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "lora_sft.yaml"
    text = file.read_text().replace("Qwen/Qwen3-1.7B", str(shrunk)).replace("sums,chats", "sums")
    file.write_text(text.replace("template: qwen3", "template: default"))
    out = tmp_path / "mine" / "sft.yaml"
    assert main(["import", str(file), "--out", str(out)]) == 0
    assert (out.parent / "default.jinja").is_file()
    assert main(["plan", str(out)]) == 0
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Human: Say hello." in shown
    assert "Human: Count to three." not in shown  # it is held out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stage": "rm"}, "stage: rm: reward models aren't trained here"),
        ({"stage": "ppo"}, "stage: ppo: PPO isn't there"),
        ({"finetuning_type": "freeze"}, "finetuning_type: freeze: single layers aren't frozen"),
        ({"dataset": None}, "dataset: isn't there"),
        ({"dataset": "sums,nothing"}, "dataset: nothing: isn't in"),
        ({"stage": "dpo"}, "dataset: sums: has no ranking: true"),
        ({"dataset": "choices"}, "dataset: choices: has ranking: true"),
        ({"dataset_dir": "REMOTE:me/sets"}, "isn't read from the Hub"),
        ({"mix_strategy": "interleave_under", "interleave_probs": "0.1,0.9", "dataset": "sums,chats,held_out"},
         "interleave_probs: 2 for 3 sets"),
    ],
)  # fmt: skip
def test_what_can_be_no_recipe_says_why(folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        import_recipe(written(folder, **keys))
    assert message in str(error.value)


def test_a_file_of_the_v1_engine_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v1.yaml"
    keys = {"model": "Qwen/Qwen3-4B", "train_dataset": "data/v1.yaml", "cutoff_len": 2048}
    path.write_text(yaml.safe_dump({**keys, "micro_batch_size": 1}))
    with pytest.raises(ConfigError, match="is a recipe of LLaMA-Factory's v1 engine"):
        import_recipe(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ms_hub_url": "me/set"}, "ModelScope isn't read"),
        ({"script_url": "set"}, "runs no loading scripts"),
        ({"cloud_file_name": "s3://set"}, "S3 and GCS aren't read"),
        ({"hf_hub_url": "me/set", "folder": "part"}, "a folder inside of a hub set isn't read"),
        ({"file_name": "gone.json"}, "no such file; put it there before a run"),
        (
            {"file_name": "sums.jsonl", "columns": {"prompt": "a", "images": "pictures"}},
            "multimodal",
        ),
    ],
)
def test_a_set_that_cannot_be_read_is_named(
    folder: Path, entry: dict[str, Any], message: str
) -> None:
    info = json.loads((folder / "data" / "dataset_info.json").read_text())
    (folder / "data" / "dataset_info.json").write_text(json.dumps({**info, "other": entry}))
    imported = import_recipe(written(folder, dataset="sums,other"))
    assert any(message in note.says for note in imported.list_of("refused"))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"stage": "pt", "dataset": "held_out"}, {"supervise": "all", "packing": "wrapped"}),
        ({"packing": True}, {"packing": "best_fit"}),
        ({}, {"packing": "none", "supervise": "assistant", "max_tokens": 2048}),
        ({"train_on_prompt": True}, {"supervise": "all"}),
        ({"streaming": True, "max_steps": 10}, {"stream": 16384}),
    ],
)
def test_what_is_done_with_rows(
    folder: Path, keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    _, stage = brought(written(folder, **keys))
    for name, value in expected.items():
        ours = stage.data.stream.shuffle_buffer if name == "stream" else getattr(stage.data, name)
        assert ours == value


def test_raw_text_is_a_column_of_it(folder: Path) -> None:
    _, stage = brought(written(folder, stage="pt", dataset="held_out"))
    assert stage.data.sources[0].columns == {"text": "instruction"}


@pytest.mark.parametrize(
    ("keys", "loss", "weights"),
    [
        ({}, "sigmoid", None),
        ({"pref_loss": "orpo"}, "orpo", None),
        ({"pref_loss": "simpo", "simpo_gamma": 0.7, "pref_beta": 2.0}, "simpo", None),
        ({"pref_loss": "kto_pair"}, "bco_pair", None),
        ({"dpo_label_smoothing": 0.1}, "robust", None),
        ({"pref_bco_weight": 1.0}, ["sigmoid", "bco_pair"], [0.5, 0.5]),
    ],
)
def test_losses_have_their_names_here(
    folder: Path, keys: dict[str, Any], loss: Any, weights: Any
) -> None:
    _, stage = brought(written(folder, stage="dpo", dataset="choices", **keys))
    assert stage.train["loss_type"] == loss
    assert stage.train.get("loss_weights") == weights


@pytest.mark.parametrize(
    ("keys", "ours", "value"),
    [
        ({"pissa_init": True}, "init_lora_weights", "pissa_niter_16"),
        ({"pissa_init": True, "pissa_iter": -1}, "init_lora_weights", "pissa"),
        ({"lora_target": "all"}, "target_modules", "all-linear"),
        (
            {"additional_target": "embed_tokens, lm_head"},
            "modules_to_save",
            ("embed_tokens", "lm_head"),
        ),
        ({"loraplus_lr_ratio": 16.0}, "loraplus_lr_ratio", 16.0),
    ],
)
def test_adapters_have_pefts_names_here(
    folder: Path, keys: dict[str, Any], ours: str, value: Any
) -> None:
    _, stage = brought(written(folder, **keys))
    assert getattr(stage.lora, ours) == value


def test_galore_and_apollo_are_transformers_optimizers(folder: Path) -> None:
    for name, rank in (("galore", 32), ("apollo", 16)):
        keys = {f"use_{name}": True, "finetuning_type": "full", f"{name}_target": "q_proj,v_proj"}
        _, stage = brought(written(folder, **keys, galore_rank=32, pure_bf16=True))
        assert stage.train["optim"] == f"{name}_adamw"
        assert stage.train["optim_target_modules"] == ["q_proj", "v_proj"]
        assert stage.train["optim_args"].startswith(f"rank={rank}, update_proj_gap=200")
        assert (stage.dtype, stage.rounded_updates) == ("bfloat16", True)


def test_new_tokens_come_with_their_descriptions(folder: Path) -> None:
    (folder / "tokens.yaml").write_text('"<spin>": turns around\n')
    keys = {"add_tokens": "zyklotron", "new_special_tokens_config": "tokens.yaml"}
    _, stage = brought(written(folder, **keys))
    tokens = [(token.text, token.description, token.special) for token in stage.new_tokens]
    assert tokens == [("zyklotron", None, False), ("<spin>", "turns around", True)]


def test_modes_follow_enable_thinking(folder: Path) -> None:
    imported, _ = brought(written(folder, enable_thinking=None))
    assert says(imported, "enable_thinking")[0] == "carried"
    imported, _ = brought(written(folder, enable_thinking=True))
    assert "teaches an empty think block" in says(imported, "enable_thinking")[1]
    imported, stage = brought(written(folder, enable_thinking=False))
    assert stage.data.sources[0].mode == "no_think"
    imported, _ = brought(written(folder, template="qwen3_nothink", enable_thinking=False))
    assert "has no effect" in says(imported, "enable_thinking")[1]


def test_what_counts_otherwise_is_said(folder: Path) -> None:
    for keys, key, words in (
        ({"stage": "dpo", "dataset": "choices", "pref_loss": "orpo"}, "pref_loss", "mean of each"),
        ({"template": "qwen3"}, "template", "a row for each answer"),
        ({"template": "alpaca", "dataset": "customers"}, "template", "tokenized as a whole"),
    ):
        action, text = says(brought(written(folder, **keys))[0], key)
        assert (action, words in text) == ("changed", True)


def test_a_template_that_nobody_knows_is_refused_with_the_nearest(folder: Path) -> None:
    imported, stage = brought(written(folder, template="qwen33"))
    assert "did you mean 'qwen3'?" in says(imported, "template")[1]
    assert stage.template == "tokenizer"


def test_a_long_context_is_merged_since_an_adapter_cannot_say_it(folder: Path) -> None:
    _, stage = brought(written(folder, rope_scaling="yarn", cutoff_len=65536))
    assert (stage.context.length, stage.context.rope, stage.save) == (65536, "yarn", "merged")


@pytest.mark.parametrize("value", [False, 3, "x", None, ["a"]])
def test_a_file_with_every_key_loses_none(folder: Path, value: Any) -> None:
    """Values of any kind make no traceback, and each key has one note."""
    keys = [key for key in read_table("llama_factory").rows if "." not in key and key not in SMALL]
    less = {"dataset_dir", "eval_dataset", "mix_strategy", "deepspeed", "val_size"}
    imported = import_recipe(written(folder, **{key: value for key in keys if key not in less}))
    noted = [note.key for note in imported.notes if note.line]
    assert sorted(noted) == sorted([*SMALL, *(key for key in keys if key not in less)])
