"""Folding: 16-bit and NF4 bases, the gap to the live QLoRA model, and PEFT's own merge."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from dualign.checkpoints.adapters import fold
from dualign.checkpoints.checkpoint import read_whole
from dualign.checkpoints.weights import open_weights
from dualign.cli.main import main
from dualign.errors import CheckpointError, MergeError
from dualign.merging.adapters.fold import FoldConfig, fold_adapter
from dualign.merging.adapters.kl_gap import gap_between
from dualign.merging.verify import verify_folder
from dualign.models.loading import nf4_options
from tests.checkpoints.test_adapters import ATTENTION, live, logits_of, make_adapter, make_base

WIDE = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 4}


def wide_base(folder: Path, tokenizer: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Sides that aren't multiples of a chunk, a tied head, and the real tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **WIDE, vocab_size=49152, num_hidden_layers=2, num_key_value_heads=2,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def qlora(base: Path, folder: Path, *, dtype: str = "bfloat16", **settings: Any) -> Path:
    """An adapter that dualign's run.json says was trained over NF4."""
    make_adapter(base, folder, **{"target_modules": "all-linear", **settings})
    return trained_over_nf4(folder, dtype)


def trained_over_nf4(adapter: Path, dtype: str) -> Path:
    training = {"config": {"quantization": "nf4", "dtype": dtype}}
    (adapter / "run.json").write_text(json.dumps(training))
    return adapter


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_nf4_base_is_that_of_the_live_model_to_the_bit(
    tmp_path: Path, embedded: Path, dtype: str
) -> None:
    import bitsandbytes as bnb

    base = wide_base(tmp_path / "base", embedded, dtype=torch.float32)
    settings = nf4_options(dtype, "cpu")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), **settings)
    weights = open_weights(f"nf4-{dtype}:{base}")
    quantized = 0
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            quantized += 1
            state = module.weight.quant_state
            expected = bnb.functional.dequantize_4bit(module.weight.data, state).float().numpy()
            found = read_whole(weights, f"{name}.weight")
            assert np.array_equal(found, expected.reshape(found.shape)), name
            flat, reader = found.reshape(-1), weights.reader(f"{name}.weight")
            assert np.array_equal(reader.read(100, 5001), flat[100:5001])
    assert quantized == 14
    embedding = model.get_input_embeddings().weight.detach().float().numpy()
    assert np.array_equal(read_whole(weights, "model.embed_tokens.weight"), embedding)


def test_the_gap_is_worked_by_hand() -> None:
    live_TV, folded_TV = torch.tensor([[0.0, 0.0]]), torch.log(torch.tensor([[1.0, 3.0]]))
    found = gap_between([live_TV], [folded_TV])
    # KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln 3 / 2
    assert found.kl == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert found.largest == pytest.approx(np.log(3))
    assert found.rms == pytest.approx(np.log(3) / 2**0.5)
    assert gap_between([live_TV], [live_TV]).kl == 0


def test_a_qlora_adapter_goes_into_the_nearer_base_and_both_gaps_are_kept(
    tmp_path: Path, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = wide_base(tmp_path / "base", embedded)
    adapter = qlora(base, tmp_path / "adapter", dtype="float32")
    (tmp_path / "prompts.txt").write_text("How many days has a week?\n\nName a colour.\n")
    options = ["--prompts", str(tmp_path / "prompts.txt")]
    assert main(["adapter", "fold", str(adapter), str(tmp_path / "out"), *options]) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "merge.json").read_text())["fold"]
    gaps = record["gaps"]
    assert (record["base"], record["recommended"], record["trained_dtype"]) == (
        "nf4", "nf4", "float32",
    )  # fmt: skip
    assert gaps["16bit"]["kl"] > 5 * gaps["nf4"]["kl"]
    assert "nearer: nf4" in shown and f"{gaps['16bit']['kl']:.3e}" in shown
    weights = open_weights(f"nf4-float32:{adapter}")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        expected = torch.from_numpy(read_whole(weights, name)).to(torch.bfloat16)
        assert torch.equal(written[name], expected)
    assert verify_folder(tmp_path / "out").tensors
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == []


def test_the_base_that_is_asked_for_is_taken_and_the_other_recommended(
    tmp_path: Path, embedded: Path
) -> None:
    base = wide_base(tmp_path / "base", embedded)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=ATTENTION)
    edit = FoldConfig(adapter=str(adapter), base="16bit", prompts=("Hello.",))
    plain = fold_adapter(edit, tmp_path / "plain")
    assert plain["fold"] == {"base": "16bit", "trained_dtype": None}  # not known to be QLoRA
    meant = FoldConfig(adapter=str(adapter), base="nf4", measure=False)
    assert fold_adapter(meant, tmp_path / "nf4")["fold"]["trained_dtype"] == "bfloat16"
    trained_over_nf4(adapter, "bfloat16")
    record = fold_adapter(edit, tmp_path / "out")["fold"]
    assert (record["base"], record["recommended"]) == ("16bit", "nf4")
    plain, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "out"))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_a_plain_adapter_is_folded_without_asking(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules="all-linear", use_dora=True)
    fold_adapter(FoldConfig(adapter=str(adapter)), tmp_path / "out")
    found = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, live(base, adapter), atol=1e-4, rtol=0)
    other = make_base(tmp_path / "other", tied=True, seed=5)
    fold_adapter(FoldConfig(adapter=str(adapter), model=str(other)), tmp_path / "elsewhere")
    found = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere"))
    torch.testing.assert_close(found, live(other, adapter), atol=1e-4, rtol=0)


def test_what_cannot_be_measured_or_folded_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = qlora(base, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"no tokenizer, so the gap .* use --no-gap"):
        fold_adapter(FoldConfig(adapter=str(adapter)), tmp_path / "out")
    with pytest.raises(CheckpointError, match="trained by QLoRA; without measuring, say with"):
        fold_adapter(FoldConfig(adapter=str(adapter), measure=False), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"prompts.txt: No such file"):
        main_prompts(tmp_path)
    tensors = make_base(tmp_path / "large", seed=1)
    config = json.loads((tensors / "config.json").read_text())
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**config, "vocab_size": 70}))
    model.save_pretrained(tmp_path / "large")
    head = make_adapter(base, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(MergeError, match=r"lm_head.weight is \(64, 32\) in the adapter and \(70,"):
        fold_adapter(FoldConfig(adapter=str(head), model=str(tmp_path / "large")), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def main_prompts(folder: Path) -> None:
    from dualign.merging.adapters.fold import read_prompts

    read_prompts(folder / "prompts.txt")


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_pefts_own_merge_is_met_in_float32_and_rounded_better_in_bfloat16(
    tmp_path: Path, kind: str
) -> None:
    """PEFT rounds s B A to bfloat16, and the sum again; here one rounding is left, of the exact sum."""
    base = make_base(tmp_path / "base")
    options = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}[kind]
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=ATTENTION, **options)
    fold(base, adapter, tmp_path / "single")
    fold(base, adapter, tmp_path / "half", dtype="bfloat16")
    exact = open_weights(adapter)
    for dtype, folder in ((torch.float32, "single"), (torch.bfloat16, "half")):
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        # their adapter in the base's type, as it is after training in bfloat16
        model = PeftModel.from_pretrained(plain, adapter, autocast_adapter_dtype=False)
        theirs = model.merge_and_unload(safe_merge=True).state_dict()
        ours = load_file(tmp_path / folder / "model.safetensors")
        off = {"ours": 0, "theirs": 0}
        for name in (entry for entry in exact.entries if any(part in entry for part in ATTENTION)):
            reference = torch.from_numpy(read_whole(exact, name)).float().to(dtype)
            off["ours"] += int((ours[name] != reference).sum())
            off["theirs"] += int((theirs[name] != reference).sum())
            if dtype is torch.float32:
                torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-6)
        assert off["ours"] == 0
        assert dtype is torch.float32 or off["theirs"] > 100


@pytest.mark.slow
def test_the_real_model_loses_less_on_the_nf4_base(tmp_path: Path, embedded: Path) -> None:
    adapter = qlora(embedded, tmp_path / "adapter", dtype="float32", target_modules=ATTENTION)
    shrink(adapter)
    record = fold_adapter(
        FoldConfig(adapter=str(adapter), dtype="bfloat16", prompts=("Say hello.",)),
        tmp_path / "out",
    )
    gaps = record["fold"]["gaps"]
    assert gaps["16bit"]["kl"] > 5 * gaps["nf4"]["kl"]


def shrink(adapter: Path) -> None:
    """Changes as small as training makes them."""
    from safetensors.torch import save_file

    file = adapter / "adapter_model.safetensors"
    small = {n: 0.05 * t if "lora_B" in n else t for n, t in load_file(file).items()}
    save_file(small, file)


def test_an_adapter_on_a_quantized_base_is_told_how_to_name_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As adapters name `owner/model-bnb-4bit`, after QLoRA elsewhere."""
    base = make_base(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter")
    quantized = shutil.copytree(base, tmp_path / "base-bnb-4bit")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    file = tmp_path / "adapter" / "adapter_config.json"
    named = json.loads(file.read_text()) | {"base_model_name_or_path": str(quantized)}
    file.write_text(json.dumps(named))
    command = ["adapter", "fold", str(tmp_path / "adapter"), str(tmp_path / "out")]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"its base {quantized} is a quantized checkpoint (bitsandbytes)" in message
    assert "OUT --model BASE" in message
    assert main([*command, "--model", str(base)]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
