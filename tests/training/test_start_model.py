"""A base or an adapter that training can't start from is refused by its files; one that it can trains."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

from dualign.errors import ConfigError
from dualign.recipe import load_recipe
from dualign.training.adapter import AdapterConfig
from dualign.training.start_model import start_issues
from tests.training.test_lora_across_stages import sft
from tests.training.test_preflight import refusal, run, write_recipe


def adapter(folder: Path, base: Path, **config: Any) -> Path:
    """An adapter on the base, as PEFT saves it, with changes that aren't zero."""
    torch.manual_seed(1)
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder


REFUSED = {
    "head": (
        {"modules_to_save": ["lm_head"]},
        "modules_to_save ['lm_head'] replaces whole tensors",
    ),
    "bias": ({"bias": "all"}, "bias: all replaces whole tensors"),
    "dora": ({"use_dora": True}, "DoRA rescales the base"),
}


@pytest.mark.parametrize(("config", "expected"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_that_cannot_be_trained_on_is_refused_at_once(
    tiny: Path, rows: Path, tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    start = adapter(tmp_path / "start", tiny, **config)
    message = refusal(write_recipe(tmp_path, start, rows, lora={"r": 2}))
    assert f"stage stage: model: {start}" in message
    assert expected in message
    assert "dualign adapter fold" in message


TRAINABLE = {
    "plain": {},
    "rank pattern": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}},
    "rslora": {"use_rslora": True},
    "dropout": {"lora_dropout": 0.1},
    "all linear": {"target_modules": "all-linear"},
    "layers": {"layers_to_transform": [1]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [1, 2]}},
}


@pytest.mark.parametrize("config", TRAINABLE.values(), ids=TRAINABLE)
def test_the_other_adapters_can_be_trained_on(
    tiny: Path, tmp_path: Path, rows: Path, config: dict[str, Any]
) -> None:
    """The reload check of the run compares the stacked adapter with the live model."""
    start = adapter(tmp_path / "start", tiny, **config)
    out = run(write_recipe(tmp_path, start, rows, lora={"r": 2}))
    assert json.loads((out / "adapter_config.json").read_text())["r"] >= 4


def test_an_adapter_of_another_kind_is_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj"], feedforward_modules=[])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(
        tmp_path / "ia3"
    )
    message = refusal(write_recipe(tmp_path, tmp_path / "ia3", rows, lora={"r": 2}))
    assert "a IA3 adapter; only LoRA adapters can be trained on" in message


def test_full_fine_tuning_of_an_adapter_is_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    start = adapter(tmp_path / "start", tiny)
    assert "full fine-tuning starts from weights" in refusal(write_recipe(tmp_path, start, rows))


def test_a_quantized_base_is_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (model / "config.json").write_text(json.dumps(config))
    message = refusal(write_recipe(tmp_path, model, rows, lora={"r": 2}))
    assert "the weights are already quantized; start from the 16- or 32-bit weights" in message


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_porj"], "'v_porj' names no layer of the model (did you mean 'v_proj'?)"),
        (["nothing"], "'nothing' names no layer of the model (known: down_proj, embed_tokens, "),
        ("q_proj", "'q_proj' names no layer of the model"),  # a pattern matches whole paths
        ([".*q_proj"], "'.*q_proj' names no layer of the model"),
        (["norm"], "'norm' names no layer of the model"),  # PEFT has no adapter for it
        (["q_proj"], ""),
        (r".*\.(q|v)_proj", ""),
        (["model.layers.0.self_attn.q_proj"], ""),
        ("all-linear", ""),
    ],
)
def test_layers_that_the_model_does_not_have_are_named(
    tiny: Path, rows: Path, tmp_path: Path, targets: Any, expected: str
) -> None:
    path = write_recipe(tmp_path, tiny, rows, lora={"r": 2, "target_modules": targets})
    issues = start_issues(load_recipe(path, []).stages[0].config)
    assert [text.startswith(expected) for _, text in issues] == [True] * bool(expected), issues


def test_what_is_not_here_yet_is_left_to_the_start_of_the_stage(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, tiny, rows, lora={"r": 2})
    for model in ("owner/model", "embedded:smollm2-135m-instruct"):
        recipe = load_recipe(path, [f"model={model}"])
        assert start_issues(recipe.stages[0].config) == []


INVALID = {
    "greedy with a temperature": {"do_sample": False, "temperature": 0.9, "top_p": 0.5},
    "negative": {"do_sample": False, "temperature": -1.0},
    "with a length": {"do_sample": False, "min_p": 0.1, "max_new_tokens": 64},
}


@pytest.mark.parametrize("values", INVALID.values(), ids=INVALID)
def test_a_base_whose_generation_config_is_invalid_is_trained_and_saved(
    tiny: Path, rows: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    file = model / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 2, **values}))
    out = run(write_recipe(tmp_path, model, rows))
    saved = GenerationConfig.from_pretrained(out)
    saved.validate(strict=True)
    assert 2 in saved.eos_token_id
    assert bool(saved.do_sample) == values["do_sample"]


@pytest.mark.parametrize(
    "values",
    [{"max_new_tokens": 0}, {"cache_implementation": "nothing"}, {"num_return_sequences": 4}],
)
def test_a_generation_config_that_keeps_the_base_from_loading_is_named(
    tiny: Path, rows: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **values}))
    message = refusal(write_recipe(tmp_path, model, rows))
    assert f"stage stage: model: {model / 'generation_config.json'}: " in message
    assert "Correct the file" in message


UNFIT = {
    "excluded": ({"exclude_modules": ["q_prj"]}, "lora.exclude_modules: 'q_prj' names no layer"),
    "all excluded": ({"exclude_modules": ".*"}, "no layer is left that gets an adapter"),
    "number": ({"layers_to_transform": [0, 2]}, "the model has layers 0 to 1, found 2"),
    "rank": ({"rank_pattern": {"qproj": 4}}, "lora.rank_pattern: 'qproj' fits no layer"),
    "shadowed": (
        {"alpha_pattern": {".*": 4, "q_proj": 8}},
        "lora.alpha_pattern: 'q_proj' has no effect: entries before it fit the same layers",
    ),
    "module": ({"modules_to_save": ["embed_token"]}, "'embed_token' names no module of the model"),
    "layers": ({"modules_to_save": ["layers"]}, "'layers' is a list of modules"),
    "nested": (
        {"modules_to_save": ["mlp", "up_proj"]},
        "model.layers.0.mlp.up_proj is a part of model.layers.0.mlp",
    ),
    "tied head": (
        {"modules_to_save": ["lm_head"]},
        "lm_head is the embedding in this model: name embed_tokens",
    ),
    "bias": ({"bias": "all"}, "lora.bias: the model has no biases"),
    "rank of pissa": ({"init_lora_weights": "pissa", "r": 65}, "has rank 64 at most, found 65"),
    "embedding": (
        {"init_lora_weights": "olora", "target_modules": ["embed_tokens"]},
        "olora is for linear layers, and model.embed_tokens is a Embedding",
    ),
}


@pytest.mark.parametrize(("lora", "expected"), UNFIT.values(), ids=UNFIT)
def test_what_an_adapter_names_and_the_model_has_not_is_refused(
    tiny: Path, rows: Path, tmp_path: Path, lora: dict[str, Any], expected: str
) -> None:
    stage = load_recipe(write_recipe(tmp_path, tiny, rows, lora=lora), []).stages[0].config
    assert expected in "; ".join(f"{key}: {message}" for key, message in start_issues(stage))


def test_names_are_judged_before_the_first_step_on_a_model_that_only_loads_then(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    lora = AdapterConfig(r=2, rank_pattern={"qproj": 4})
    with pytest.raises(ConfigError, match=r"stage sft: lora\.rank_pattern: 'qproj' fits no layer"):
        sft(tiny, rows, tmp_path / "work", lora=lora)


def test_whole_tensors_beside_an_adapter_are_refused(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    start = adapter(tmp_path / "start", tiny)
    message = refusal(
        write_recipe(tmp_path, start, rows, lora={"r": 2, "modules_to_save": ["embed_tokens"]})
    )
    assert (
        "lora.modules_to_save trains whole tensors, which can't be added to the adapter" in message
    )
    assert "save: merged in the stage that trained it" in message
