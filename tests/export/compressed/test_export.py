"""Checkpoints for vLLM: what is written, that transformers reads it, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign.checkpoints.checkpoint import Checkpoint, read_json
from dualign.cli.main import main
from dualign.errors import CheckpointError, ConfigError
from dualign.export import both_modes
from dualign.export.comparison import ComparisonConfig
from dualign.export.compressed import export as exports
from dualign.export.compressed import source as sources
from dualign.export.compressed.export import export_compressed, plan_compressed
from dualign.export.compressed.source import open_compressed
from dualign.export.compressed.types import TYPES
from dualign.hashing import hashes_of

# the largest relative change of a matrix of normal numbers
CHANGE = {"bf16": 0.003, "fp8": 0.04, "int8": 0.02, "nvfp4": 0.15}
FORMATS = {"fp8": "float-quantized", "int8": "pack-quantized", "nvfp4": "nvfp4-pack-quantized"}


def needs(type: str) -> None:
    if type != "bf16":
        pytest.importorskip("compressed_tensors")


def weights_of(folder: Path, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """The state of a model in float32, as transformers reads it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model(torch.tensor([[1, 2, 3]]))  # compressed-tensors decompresses at the first use
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module", params=[name for name in TYPES if not TYPES[name].calibrated])
def exported(request, tiny_llama, tmp_path_factory):
    """A type, and a tiny model in it."""
    needs(request.param)
    out = tmp_path_factory.mktemp("exports") / request.param
    export_compressed(str(tiny_llama), out, type=request.param)
    return request.param, out


def test_transformers_reads_the_weights_back(exported, tiny_llama):
    type, out = exported
    dtype = torch.bfloat16 if type == "nvfp4" else torch.float32
    before, after = weights_of(tiny_llama), weights_of(out, dtype)
    for name, tensor in before.items():
        change = float((after[name] - tensor).norm() / tensor.norm())
        matrix = name.endswith("_proj.weight")
        assert change < (CHANGE[type] if matrix else 0.003), name
        if matrix and type != "bf16":
            assert change > 0


def test_only_linear_layers_become_smaller(exported, tiny_llama):
    type, out = exported
    stored = load_file(out / "model.safetensors")
    assert "lm_head.weight" not in stored  # tied to the embedding
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert stored[name].dtype == torch.bfloat16
    if type != "bf16":
        packed = "weight" if type == "fp8" else "weight_packed"
        assert stored[f"model.layers.0.mlp.up_proj.{packed}"].element_size() in (1, 4)
        assert sum(name.endswith("weight_scale") for name in stored) == 4 * 7


def test_config_has_the_published_form(exported, tiny_llama):
    type, out = exported
    config = read_json(out / "config.json")
    assert config["dtype"] == "bfloat16" and config["tie_word_embeddings"] is True
    if type == "bf16":
        assert "quantization_config" not in config
        return
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == FORMATS[type]
    assert quantization["ignore"] == ["lm_head"]
    group = quantization["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"]
    assert group["weights"]["num_bits"] == (4 if type == "nvfp4" else 8)
    assert (group["input_activations"] is not None) is (type == "fp8")


def test_tokenizer_template_and_settings_travel(exported, tiny_llama):
    _, out = exported
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (tiny_llama / name).read_bytes()
    assert AutoTokenizer.from_pretrained(out).eos_token_id == 2


def test_the_size_is_known_before(exported, tiny_llama, capsys):
    type, out = exported
    stored = load_file(out / "model.safetensors")
    written = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert plan_compressed(str(tiny_llama), type=type).bytes == written
    assert main(["export", str(tiny_llama), "unwritten", "--type", type, "--dry-run"]) == 0
    assert f"{written / 1e6:.4g} MB" in capsys.readouterr().out
    assert not Path("unwritten").exists()


def test_files_can_be_read_by_others(exported):
    _, out = exported
    assert (out / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_an_untied_head_stays(make, tmp_path):
    needs("int8")
    model = make("llama", tie_word_embeddings=False)
    export_compressed(str(model), tmp_path / "out", type="int8")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    head = load_file(model / "model.safetensors")["lm_head.weight"]
    assert torch.equal(stored["lm_head.weight"], head.to(torch.bfloat16))
    after = weights_of(tmp_path / "out")
    assert torch.equal(after["lm_head.weight"], head.to(torch.bfloat16).float())


@pytest.mark.parametrize("kind", [pytest.param("smollm3", marks=pytest.mark.slow), "qwen2"])
def test_other_kinds_of_model(kind, make, tmp_path):
    needs("fp8")
    model = make(kind)
    export_compressed(str(model), tmp_path / "out", type="fp8")
    before, after = weights_of(model), weights_of(tmp_path / "out")
    for name, tensor in before.items():
        assert float((after[name] - tensor).norm()) <= 0.04 * float(tensor.norm()), name


def test_matrices_that_vllm_fuses_share_nvfp4s_outer_scale(tiny_llama, tmp_path):
    needs("nvfp4")
    export_compressed(str(tiny_llama), tmp_path / "out", type="nvfp4")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        room = "self_attn" if "q_proj" in names else "mlp"
        scales = {
            float(stored[f"model.layers.1.{room}.{name}.weight_global_scale"]) for name in names
        }
        assert len(scales) == 1


def test_shards_have_an_index(tiny_llama, tmp_path, monkeypatch):
    needs("int8")
    with monkeypatch.context() as patch:
        patch.setattr("dualign.export.compressed.write.SHARD_BYTES", 100_000)
        export_compressed(str(tiny_llama), tmp_path / "out", type="int8")
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 1
    whole = export_compressed(str(tiny_llama), tmp_path / "whole", type="int8")
    assert set(index["weight_map"]) == set(load_file(tmp_path / "whole" / next(iter(whole.files))))
    assert weights_of(tmp_path / "out").keys() == weights_of(tmp_path / "whole").keys()


def test_both_modes_are_compared_by_the_command(learnt, task_file, tmp_path, capsys):
    needs("fp8")
    out = tmp_path / "fp8"
    command = ["export", str(learnt), str(out), "--type", "fp8", "--task", str(task_file)]
    assert main(command) == 0
    record = read_json(out / "export.json")
    think, no_think = record["both_modes"]["modes"]
    assert think["accuracy"]["before"] == 1 and no_think["accuracy"]["before"] == 0.25
    assert 0 < think["trace"]["kl"] < both_modes.MAX_KL
    assert record["both_modes"]["beyond"] == [] and record["type"] == "fp8"
    assert record["weights"] == hashes_of(Checkpoint(learnt).files)
    printed = capsys.readouterr().out
    assert "KL in traces" in printed and "no_think" in printed
    verdict, where, following = printed.splitlines()[-3:]
    assert verdict == "fp8: within the bounds in think and no_think"
    assert str(out) in where and following == f"next: vllm serve {out}"


def test_a_worse_mode_is_refused_and_nothing_is_written(
    learnt, task_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(both_modes, "MAX_KL", -1.0)
    comparison = ComparisonConfig(tasks=(str(task_file),), rows=2)
    with pytest.raises(CheckpointError, match=r"think: KL .* --allow-worse|--allow-worse"):
        export_compressed(str(learnt), tmp_path / "out", type="bf16", comparison=comparison)
    assert list(tmp_path.iterdir()) == []
    command = ["export", str(learnt), str(tmp_path / "out"), "--type", "bf16", "--allow-worse"]
    assert main([*command, "--task", str(task_file), "--rows", "2"]) == 0
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert len(record["both_modes"]["beyond"]) == 3
    assert "bf16: beyond the bounds, written because of --allow-worse" in capsys.readouterr().out


def test_one_type_at_a_time(tiny_llama, tmp_path, capsys):
    assert main(["export", str(tiny_llama), str(tmp_path / "out"), "--types", "fp8,q8_0"]) != 0
    assert "one type at a time" in capsys.readouterr().err
    with pytest.raises((ConfigError, CheckpointError)):
        export_compressed(str(tiny_llama), tiny_llama, type="bf16")


def test_what_is_missing_is_said_first(tiny_llama, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"dualign\[quantize\]"):
        open_compressed(str(tiny_llama), TYPES["fp8"])
    assert open_compressed(str(tiny_llama), TYPES["bf16"]).modules == ()


def test_widths_that_no_group_divides_are_refused(make):
    needs("nvfp4")
    with pytest.raises(CheckpointError, match=r"down_proj has rows of 72 weights.*groups of 16"):
        open_compressed(str(make("llama", intermediate_size=72)), TYPES["nvfp4"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--type", "fp8", "--name", "x", "--imatrix"], "--imatrix, --name: for GGUF types"),
        (["--type", "fp8", "--no-check", "--rows", "3"], "--no-check compares nothing"),
    ],
)
def test_options_without_effect_are_refused(flags, message, tiny_llama, tmp_path, capsys):
    assert main(["export", str(tiny_llama), str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_task_that_cant_be_asked_ends_an_export_before_it_writes(
    flags, learnt, task_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(exports, "_write", lambda *_: pytest.fail("weights were written"))
    folder = shutil.copytree(task_file.parent, tmp_path / "tasks")
    task = folder / task_file.name
    task.write_text(task.read_text().replace("{question}", "{no_such_field}"))
    command = ["export", str(learnt), str(tmp_path / "out"), "--type", "bf16", *flags]
    assert main([*command, "--task", str(task)]) != 0
    assert "no_such_field" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_names_the_rows_and_the_tasks(learnt, task_file, tmp_path, capsys):
    needs("gptq")
    reply = {"role": "assistant", "content": "2"}
    rows = [
        {"mode": "no_think", "messages": [{"role": "user", "content": f"{i} + 1?"}, reply]}
        for i in range(3)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["export", str(learnt), str(tmp_path / "out"), "--type", "gptq", "--dry-run"]
    task = ["--task", str(task_file), "--rows", "2"]
    assert main([*command, *task, "--calibration", str(file), "--calibration-rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"rows of {file}: 2 of 3 in no_think" in printed
    assert "2 problems of sums" in printed
    assert main([*command, *task]) != 0
    assert "no run says which rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
