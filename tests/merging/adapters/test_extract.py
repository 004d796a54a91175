"""Adapters out of two checkpoints: loaded by plain PEFT they give the tuned model's logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config

from dualign.checkpoints.adapters import fold
from dualign.cli.main import main
from dualign.errors import CheckpointError, MergeError
from dualign.merging.adapters.extract import ExtractConfig, extract_adapter
from dualign.merging.adapters.lowrank import Truncation
from tests.checkpoints.test_adapters import (
    SIZES,
    edit_config,
    live,
    logits_of,
    make_adapter,
    make_base,
)

FULL = Truncation(rank=64)


def every(name: str) -> bool:
    return True


def tune(
    base: Path, folder: Path, *, which: Callable[[str], bool] = every, scale: float = 0.02
) -> Path:
    """A copy of the base with noise on some tensors."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if which(name):
                parameter.add_(torch.randn_like(parameter), alpha=scale)
    model.save_pretrained(folder)
    return folder


def taken(base: Path, tuned: Path, out: Path, **settings: Any) -> dict[str, Any]:
    meant = ExtractConfig(base=str(base), tuned=str(tuned), **{"truncation": FULL, **settings})
    return extract_adapter(meant, out)


def config_of(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


def plain(folder: Path) -> torch.Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("embedding", ["save", "lora"])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("smollm3", True)])
def test_at_full_rank_the_adapter_is_the_tuned_model(
    tmp_path: Path, family: str, tied: bool, embedding: str
) -> None:
    base = make_base(tmp_path / "base", family=family, tied=tied)
    tuned = tune(base, tmp_path / "tuned")
    record = taken(base, tuned, tmp_path / "out", embedding=embedding)
    expected = plain(tuned)
    torch.testing.assert_close(live(base, tmp_path / "out"), expected, atol=1e-4, rtol=0)
    assert (expected - plain(base)).abs().max() > 0.5
    assert record["error"] < 1e-9
    assert ("model.embed_tokens" in record["whole"]) == (embedding == "save")
    assert config_of(tmp_path / "out")["ensure_weight_tying"] == tied
    fold(base, tmp_path / "out", tmp_path / "folded")
    torch.testing.assert_close(plain(tmp_path / "folded"), expected, atol=1e-4, rtol=0)


def test_biases_are_kept_whole(tmp_path: Path) -> None:
    """Qwen2 has them on q, k and v."""
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES, tie_word_embeddings=True, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tuned = tune(tmp_path / "base", tmp_path / "tuned", scale=0.1)
    taken(tmp_path / "base", tuned, tmp_path / "out")
    assert config_of(tmp_path / "out")["bias"] == "all"
    found = live(tmp_path / "base", tmp_path / "out")
    torch.testing.assert_close(found, plain(tuned), atol=1e-4, rtol=0)
    fold(tmp_path / "base", tmp_path / "out", tmp_path / "folded")
    torch.testing.assert_close(plain(tmp_path / "folded"), plain(tuned), atol=1e-4, rtol=0)
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias" in names


def test_only_what_changed_is_in_the_adapter(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    tuned = tune(base, tmp_path / "some", which=lambda name: "layers.1.self_attn.q_proj" in name)
    record = taken(base, tuned, tmp_path / "out")
    assert config_of(tmp_path / "out")["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert list(record["modules"]) == ["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(live(base, tmp_path / "out"), plain(tuned), atol=1e-5, rtol=0)
    tuned = tune(base, tmp_path / "all", which=lambda name: "q_proj" in name)
    taken(base, tuned, tmp_path / "short")
    assert config_of(tmp_path / "short")["target_modules"] == ["q_proj"]
    assert config_of(tmp_path / "short")["modules_to_save"] is None


def test_the_reported_errors_are_those_of_numpy(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned")
    record = taken(base, tuned, tmp_path / "out", truncation=Truncation(rank=5))
    before, after = (load_file(item / "model.safetensors") for item in (base, tuned))
    lost = total = 0.0
    for path, reported in record["modules"].items():
        change = (after[f"{path}.weight"].double() - before[f"{path}.weight"].double()).numpy()
        squares = np.square(np.linalg.svd(change, compute_uv=False))
        assert reported["rank"] == 5
        assert reported["error"] == pytest.approx((squares[5:].sum() / squares.sum()) ** 0.5)
        lost, total = lost + squares[5:].sum(), total + squares.sum()
    assert record["error"] == pytest.approx((lost / total) ** 0.5)


def test_energy_keeps_the_share_in_every_module(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    record = taken(
        base, tune(base, tmp_path / "t"), tmp_path / "out", truncation=Truncation(energy=0.8)
    )
    ranks = {path: module["rank"] for path, module in record["modules"].items()}
    assert all(module["error"] <= 0.2**0.5 for module in record["modules"].values())
    assert len(set(ranks.values())) > 1
    live(base, tmp_path / "out")  # rank_pattern loads
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path, rank in ranks.items():
        assert written[f"base_model.model.{path}.lora_A.weight"].shape[0] == rank


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_comes_back_out_of_the_model_it_was_folded_into(
    tmp_path: Path, dora: bool
) -> None:
    """LoRA r 4 has rank 4; DoRA rescales the rows of the whole weight, so it has all ranks."""
    base = make_base(tmp_path / "base")
    settings = {"target_modules": ["q_proj", "down_proj"], "use_dora": dora}
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    # an adapter's folder is a model, too
    record = taken(base, adapter, tmp_path / "out", truncation=Truncation(rank=48 if dora else 4))
    torch.testing.assert_close(live(base, tmp_path / "out"), live(base, adapter), atol=1e-4, rtol=0)
    assert record["error"] < 1e-6


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary": ({"vocab_size": 70}, r"\(64, 32\) in .* \(70, 32\) in .*same vocabulary first"),
    "ties": ({"tie_word_embeddings": True}, "ties its head to the embedding, .*base doesn't"),
    "layers": ({"num_hidden_layers": 2}, "has the tensor model.layers.2"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_checkpoints_of_two_shapes_are_refused(tmp_path: Path, kind: str) -> None:
    from transformers import LlamaConfig

    base = make_base(tmp_path / "base")
    changes, message = REFUSED[kind]
    settings = {**SIZES, "tie_word_embeddings": False, **changes}
    AutoModelForCausalLM.from_config(LlamaConfig(**settings)).save_pretrained(tmp_path / "other")
    with pytest.raises(MergeError, match=message):
        taken(base, tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkpoints_without_a_linear_difference_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    with pytest.raises(MergeError, match="don't differ in any number"):
        taken(base, base, tmp_path / "out")
    tuned = tune(base, tmp_path / "norms", which=lambda name: "norm" in name)
    with pytest.raises(MergeError, match=r"no linear layer differs.*copy model.layers.0.input_lay"):
        taken(base, tuned, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_nan_and_an_unknown_kind_of_model_are_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "none_such"}))
    with pytest.raises(CheckpointError, match="model_type 'none_such' isn't a causal language"):
        taken(base, tuned, tmp_path / "out")
    (base / "config.json").write_text(json.dumps(config))
    tune(base, tmp_path / "bad", which=lambda name: "k_proj" in name, scale=float("nan"))
    with pytest.raises(MergeError, match=r"k_proj.weight holds NaN"):
        taken(base, tmp_path / "bad", tmp_path / "out")


def test_the_command_line_extracts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned")
    (tuned / "chat_template.jinja").write_text("the template")
    (tuned / "tokenizer_config.json").write_text("{}")
    arguments = ["adapter", "extract", str(base), str(tuned), str(tmp_path / "out")]
    assert main([*arguments, "--rank", "4"]) == 0
    record = json.loads((tmp_path / "out" / "adapter.json").read_text())
    shown = capsys.readouterr().out
    assert f"22 modules, rank 4; relative error {record['error']:.2e}" in shown
    assert "kept whole: 8 modules that aren't linear, model.embed_tokens first" in shown
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the template"
    assert Path(config_of(tmp_path / "out")["base_model_name_or_path"]) == base.resolve()
    edit_config(tmp_path / "out", r=5)  # and it is checked like any adapter
    assert (
        main(["adapter", "compress", str(tmp_path / "out"), str(tmp_path / "c"), "--rank=2"]) == 2
    )
    assert "expected rank 5 in both" in capsys.readouterr().err
