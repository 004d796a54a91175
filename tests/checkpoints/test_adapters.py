"""Adapter algebra against PEFT itself: what is written gives the live model's logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, SmolLM3Config

from dualign.checkpoints.adapters import concatenate, fold
from dualign.checkpoints.weights import open_weights
from dualign.errors import CheckpointError, MergeError

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ATTENTION = ["q_proj", "v_proj"]


def make_base(folder: Path, *, family: str = "llama", tied: bool = False, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    kind = SmolLM3Config if family == "smollm3" else LlamaConfig
    config = kind(**SIZES, tie_word_embeddings=tied, initializer_range=0.2)
    if family == "smollm3":
        config.no_rope_layers = [1, 1, 0]
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> Path:
    """An adapter whose every tensor is far from its start, as if it were trained."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def logits_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, SIZES["vocab_size"], (2, 12), generator=generator)
    with torch.no_grad():
        return model.eval()(ids).logits


def live(base: Path, *adapters: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[0], "0")
    for number, adapter in enumerate(adapters[1:], start=1):
        model.load_adapter(adapter, str(number))
    if len(adapters) > 1:
        model.base_model.set_adapter([str(number) for number in range(len(adapters))])
    return logits_of(model)


def edit_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


LORAS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "dora with rslora": {"target_modules": ATTENTION, "use_dora": True, "use_rslora": True},
    "patterns": {
        "target_modules": ATTENTION,
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6},
        "alpha_pattern": {"v_proj": 3},
    },
    "norms saved": {"target_modules": ATTENTION, "modules_to_save": ["norm"]},
    "embedding": {"target_modules": [*ATTENTION, "embed_tokens"]},
    "embedding dora": {"target_modules": [*ATTENTION, "embed_tokens"], "use_dora": True},
    "embedding tied": {
        "target_modules": [*ATTENTION, "embed_tokens"],
        "ensure_weight_tying": True,
    },
    "embedding saved": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": [*ATTENTION, "lm_head"]},
    "head saved": {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ATTENTION, "trainable_token_indices": [3, 7, 1]},
}


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("smollm3", True)])
def test_folded_and_reloaded_gives_the_live_logits(
    tmp_path: Path, family: str, tied: bool, kind: str
) -> None:
    base = make_base(tmp_path / "base", family=family, tied=tied)
    adapter = make_adapter(base, tmp_path / "adapter", **LORAS[kind])
    fold(base, adapter, tmp_path / "folded")
    expected = live(base, adapter)
    found = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "folded"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    untouched = logits_of(AutoModelForCausalLM.from_pretrained(base))
    assert (expected - untouched).abs().max() > 0.1  # the adapter matters


@pytest.mark.parametrize(
    ("kind", "stays_tied"),
    [("lora", True), ("tokens", True), ("embedding saved", False), ("head", False)],
)
def test_a_tied_head_is_untied_only_where_the_adapter_does_it(
    tmp_path: Path, kind: str, stays_tied: bool
) -> None:
    base = make_base(tmp_path / "base", tied=True)
    fold(base, make_adapter(base, tmp_path / "adapter", **LORAS[kind]), tmp_path / "folded")
    names = load_file(tmp_path / "folded" / "model.safetensors").keys()
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert ("lm_head.weight" not in names) == stays_tied
    assert config["tie_word_embeddings"] == stays_tied


def test_saved_embedding_and_head_that_are_tied_stay_one_tensor(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    settings = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=ATTENTION, **settings)
    assert "base_model.model.lm_head.weight" in load_file(adapter / "adapter_model.safetensors")
    weights = open_weights(adapter)
    assert "lm_head.weight" not in weights.entries
    assert weights.config["tie_word_embeddings"] is True


def test_an_adapter_on_an_adapter_folds_both(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    first = make_adapter(base, tmp_path / "first", target_modules="all-linear")
    fold(base, first, tmp_path / "middle")
    second = make_adapter(tmp_path / "middle", tmp_path / "second", seed=2, use_dora=True)
    edit_config(second, base_model_name_or_path="../first")  # relative to the adapter's folder
    weights = open_weights(second)
    fold(first, second, tmp_path / "out")
    found = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    expected = live(tmp_path / "middle", second)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert weights.folders == (second, second / "../first", base)


@pytest.mark.parametrize("kind", ["lora", "dora", "embedding dora", "tokens", "head saved"])
def test_any_stretch_of_a_folded_tensor_is_that_of_the_whole(tmp_path: Path, kind: str) -> None:
    base = make_base(tmp_path / "base")
    weights = open_weights(make_adapter(base, tmp_path / "adapter", **LORAS[kind]))
    for name, entry in weights.entries.items():
        whole = weights.reader(name).read(0, entry.size)
        for start, stop in ((0, 1), (1, entry.size), (5, min(5 + 77, entry.size))):
            assert np.array_equal(weights.reader(name).read(start, stop), whole[start:stop]), name


def test_a_fold_that_overflows_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    huge = {name: item * 1e30 for name, item in load_file(file).items()}
    save_file(huge, file)
    with pytest.raises(MergeError, match=r"q_proj.weight would hold .* choose a wider dtype"):
        fold(base, adapter, tmp_path / "folded")


def test_folding_rounds_once(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    fold(base, adapter, tmp_path / "folded", dtype="bfloat16")
    name = "model.layers.1.self_attn.q_proj.weight"
    factors = load_file(adapter / "adapter_model.safetensors")
    path = f"base_model.model.{name.removesuffix('.weight')}"
    A, B = (factors[f"{path}.lora_{item}.weight"].double() for item in "AB")
    exact = load_file(base / "model.safetensors")[name].double() + 2 * B @ A  # alpha / r = 8 / 4
    found = load_file(tmp_path / "folded" / "model.safetensors")[name]
    assert torch.equal(found, exact.to(torch.bfloat16))
    assert json.loads((tmp_path / "folded" / "config.json").read_text())["dtype"] == "bfloat16"


def test_folded_weights_have_the_end_and_pad_ids_of_the_adapters_training(tmp_path: Path) -> None:
    """Its base's config.json says what held before the stage set an end-of-turn and a pad token."""
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    settings = GenerationConfig(eos_token_id=[5, 2], pad_token_id=3)
    settings.save_pretrained(adapter)
    fold(base, adapter, tmp_path / "folded")
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (5, 3)
    # So they agree when they are merged.
    assert open_weights(adapter).config["pad_token_id"] == 3


CONCATENATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same modules": ({"target_modules": "all-linear"}, {"target_modules": "all-linear", "r": 8}),
    "rslora": (
        {"target_modules": ATTENTION, "use_rslora": True},
        {"target_modules": ATTENTION, "r": 2, "lora_alpha": 5},
    ),
    "other modules": (
        {"target_modules": ATTENTION, "layers_to_transform": [0, 2]},
        {"target_modules": ["v_proj", "down_proj"], "r": 3},
    ),
    "patterns": (
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 7}},
        {"target_modules": ATTENTION, "alpha_pattern": {"layers.2.self_attn.q_proj": 1}},
    ),
    "embedding": (
        {"target_modules": [*ATTENTION, "embed_tokens"]},
        {"target_modules": [*ATTENTION, "embed_tokens"], "r": 2},
    ),
    "embedding in one": (
        {"target_modules": ATTENTION},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ),
}


@pytest.mark.parametrize("kind", CONCATENATED)
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("smollm3", True)])
def test_concatenated_adapter_gives_the_logits_of_both_active(
    tmp_path: Path, family: str, tied: bool, kind: str
) -> None:
    base = make_base(tmp_path / "base", family=family, tied=tied)
    settings = CONCATENATED[kind]
    first = make_adapter(base, tmp_path / "first", **settings[0])
    second = make_adapter(base, tmp_path / "second", seed=2, **settings[1])
    concatenate([first, second], tmp_path / "both")
    expected = live(base, first, second)
    torch.testing.assert_close(live(base, tmp_path / "both"), expected, atol=1e-5, rtol=0)
    assert (expected - live(base, first)).abs().max() > 0.1


def test_a_head_tied_in_one_adapter_and_free_in_another_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    settings = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    tied = make_adapter(base, tmp_path / "tied", **settings)
    alone = make_adapter(base, tmp_path / "head", target_modules=["lm_head"])
    edit_config(alone, ensure_weight_tying=True)
    with pytest.raises(
        MergeError, match=r"changes the head as it changes the embedding, .*by itse"
    ):
        concatenate([tied, alone], tmp_path / "no")


def test_concatenated_ranks_add_up_and_scaling_is_one(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    first = make_adapter(base, tmp_path / "first", target_modules=["q_proj"], r=4)
    second = make_adapter(base, tmp_path / "second", target_modules=ATTENTION, r=3)
    made = concatenate([first, second], tmp_path / "both")
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert (made.modules, made.rank) == (6, 7)
    assert config["r"] == config["lora_alpha"] == 7
    v_projs = {f"model.layers.{layer}.self_attn.v_proj": 3 for layer in range(3)}
    assert config["rank_pattern"] == config["alpha_pattern"] == v_projs
    # q: (32 + 32) x 7 in 3 layers; v: (32 + 16) x 3 in 3 layers
    assert made.parameters == 3 * 64 * 7 + 3 * 48 * 3


def test_no_tensor_is_missing_when_the_concatenated_adapter_loads(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    base = make_base(tmp_path / "base")
    first = make_adapter(base, tmp_path / "first", target_modules=["q_proj"])
    second = make_adapter(base, tmp_path / "second", target_modules=["up_proj"])
    concatenate([first, second], tmp_path / "both")
    recwarn.clear()
    live(base, tmp_path / "both")
    assert not [item for item in recwarn if "missing" in str(item.message)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora.*fold it into its base first"),
        ({"modules_to_save": ["norm"]}, "modules_to_save.*norm.*fold it"),
        ({"lora_bias": True}, "lora_bias: True"),
    ],
)
def test_what_does_not_add_up_is_refused_with_the_fix(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    base = make_base(tmp_path / "base")
    first = make_adapter(base, tmp_path / "first", target_modules=ATTENTION)
    second = make_adapter(base, tmp_path / "second", target_modules=ATTENTION, **settings)
    with pytest.raises(MergeError, match=message):
        concatenate([first, second], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_rows_of_tokens_add_up_where_no_other_adapter_has_them(tmp_path: Path) -> None:
    """Folded at once, both give what they give folded one after the other."""
    base = make_base(tmp_path / "base")
    first, second, again = (
        make_adapter(base, tmp_path / name, target_modules=ATTENTION, trainable_token_indices=ids)
        for name, ids in (("first", [1]), ("second", [7, 3]), ("again", [2, 1]))
    )
    concatenate([first, second], tmp_path / "both")
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == [1, 7, 3]
    fold(base, tmp_path / "both", tmp_path / "at once")
    fold(base, first, tmp_path / "half")
    fold(tmp_path / "half", second, tmp_path / "whole")
    at_once, whole = (
        load_file(tmp_path / name / "model.safetensors") for name in ("at once", "whole")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(at_once[name], tensor, rtol=1e-5, atol=1e-6)
    with pytest.raises(MergeError, match="token 1 is trained by another adapter as well; fold it"):
        concatenate([first, again], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_adapters_of_two_bases_are_not_concatenated(tmp_path: Path) -> None:
    adapters = []
    for seed in (0, 1):
        base = make_base(tmp_path / f"base{seed}", seed=seed)
        adapters.append(make_adapter(base, tmp_path / f"adapter{seed}", target_modules=ATTENTION))
    with pytest.raises(MergeError, match="all must be trained on one base"):
        concatenate(adapters, tmp_path / "both")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fan_in_fan_out": True}, "fan_in_fan_out: True, which can't be folded exactly"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the base model too"),
        ({"peft_type": "IA3"}, "expected a LORA adapter, found peft_type 'IA3'"),
        ({"r": 5}, r"shapes \(\(4, 32\), \(32, 4\)\); expected rank 5"),
        ({"use_dora": True}, "expected .*magnitude"),
    ],
)
def test_an_adapter_that_cannot_be_folded_exactly_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    edit_config(adapter, **changes)
    with pytest.raises(MergeError, match=message):
        open_weights(adapter)


def test_an_adapter_on_a_missing_base_says_where_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    for name in ("nobody/no-such-model", str(tmp_path / "gone")):
        edit_config(adapter, base_model_name_or_path=name)
        with pytest.raises(CheckpointError, match=name) as caught:
            open_weights(adapter)
        assert "base_model_name_or_path" in str(caught.value)


def test_an_adapter_that_names_itself_as_base_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    edit_config(adapter, base_model_name_or_path=".")
    with pytest.raises(CheckpointError, match="names itself as its base"):
        open_weights(adapter)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(
        {name.replace("layers.2", "layers.9"): tensor for name, tensor in tensors.items()}, file
    )
    with pytest.raises(MergeError, match=r"changes model.layers.9.* doesn't have"):
        open_weights(adapter)
    wide = {
        name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(wide, file)
    with pytest.raises(
        MergeError, match=r"is \(32, 64\) in the adapter and \(32, 32\) in the base; name the base"
    ):
        open_weights(adapter)


def test_an_adapter_of_a_resized_vocabulary_is_refused_with_the_remedy(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **LORAS["embedding saved"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path / "resized")
    larger = make_adapter(tmp_path / "resized", tmp_path / "larger", **LORAS["embedding saved"])
    with pytest.raises(
        MergeError,
        match=r"embed_tokens.weight is \(70, 32\) in the adapter and \(64, 32\) in the base; .*"
        r"model.resize_token_embeddings\(70\)",
    ):
        fold(base, larger, tmp_path / "out")
    with pytest.raises(MergeError, match=r"resize_token_embeddings\(64\)"):
        fold(tmp_path / "resized", adapter, tmp_path / "out")
    fold(tmp_path / "resized", larger, tmp_path / "out")  # as the message says
    assert not list(tmp_path.glob(".out*"))


def test_a_nan_in_an_adapter_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if "layers.1" in key and "lora_B" in key)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file)
    with pytest.raises(MergeError, match=f"{file}.*{name} holds 1 NaN"):
        open_weights(adapter)


def test_a_folded_head_of_a_sharded_base_keeps_every_tensor(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(
        tmp_path / "sharded", max_shard_size="20KB"
    )
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    fold(tmp_path / "sharded", adapter, tmp_path / "folded")
    with safe_open(tmp_path / "folded" / "model.safetensors", "pt") as folded:
        assert set(folded.keys()) == set(load_file(base / "model.safetensors"))
        assert folded.metadata() == {"format": "pt"}
