"""GPTQ and AWQ on rows of both modes; what happens to a mode whose rows they never read."""

import json
import shutil
from dataclasses import replace
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualign.errors import CheckpointError
from dualign.evaluation.divergence import mean_divergence, scorer, token_divergences
from dualign.export.calibration import Calibration, CalibrationRow
from dualign.export.compressed.export import CalibrationConfig, export_compressed
from dualign.export.compressed.source import open_compressed
from dualign.export.compressed.types import TYPES
from dualign.models.loading import load_model
from dualign.models.tokenizer import load_chat_tokenizer
from tests.chat_model import LEARNT, prompt, taught_row

pytest.importorskip("compressed_tensors")
from dualign.export.compressed.awq import Inputs, clipped, nearest_values, smooth
from dualign.export.compressed.gptq import gptq
from dualign.export.compressed.layers import calibrated
from dualign.export.compressed.packing import quantization_args


def args_of(type: str):
    return quantization_args({**TYPES[type].weights, "group_size": 32})


@pytest.fixture
def matrix():
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(0))


def said(tokenizer):
    """(mode, question, answer) of all that the tiny model has learnt."""
    for question, (thought, right, quick) in LEARNT.items():
        yield "think", f"What is {question}?", f"{thought}\n</think>\n\n{right}"
        yield "no_think", f"What is {question}?", quick


def rows_of(tokenizer, *modes) -> Calibration:
    rows = tuple(
        CalibrationRow(mode=mode, ids=tuple(chain(*taught_row(tokenizer, question, mode, text))))
        for mode, question, text in said(tokenizer)
        if mode in modes
    )
    return Calibration(origin="a test", rows=rows, seed=0, available={})


def test_gptq_is_nearest_rounding_where_inputs_say_nothing(matrix):
    args = args_of("gptq")
    rounded, params = gptq(matrix, torch.eye(64), args)
    expected, _ = nearest_values(matrix, args)
    assert torch.equal(rounded, expected)
    assert params["weight_scale"].shape == (48, 2)


def test_gptq_is_the_paper_by_an_explicit_inverse(matrix):
    """Equations 2 and 3 of arXiv 2210.17323, one column at a time, in float64."""
    random = torch.Generator().manual_seed(2)
    inputs = torch.randn(300, 64, generator=random) @ torch.randn(64, 64, generator=random)
    args = args_of("gptq")
    rounded, params = gptq(matrix, inputs.T @ inputs, args)
    scales = params["weight_scale"].double().repeat_interleave(32, 1)
    moments = (inputs.T @ inputs).double()
    order = moments.diagonal().argsort(descending=True, stable=True).tolist()
    inverse = (moments + 0.01 * moments.diagonal().mean() * torch.eye(64)).inverse()
    rest = matrix.double().clone()
    for i in order:
        before = rest[:, i].clone()
        rest[:, i] = (before / scales[:, i]).round().clamp(-8, 7) * scales[:, i]
        later = order[order.index(i) + 1 :]
        error = (before - rest[:, i]) / inverse[i, i]
        rest[:, later] -= error[:, None] * inverse[i, later]
        inverse -= torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    assert float(((rounded - rest).abs() < 1e-4).float().mean()) > 0.9  # ties, in float32


def test_gptq_changes_outputs_less_than_nearest_rounding(matrix):
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(512, 8, generator=random) @ torch.randn(8, 64, generator=random)
    inputs += 0.1 * torch.randn(512, 64, generator=random)
    args = args_of("gptq")
    rounded, _ = gptq(matrix, inputs.T @ inputs, args)
    nearest, _ = nearest_values(matrix, args)
    changes = [float((inputs @ (each - matrix).T).norm()) for each in (rounded, nearest)]
    assert changes[0] < 0.5 * changes[1]


def test_awq_keeps_what_a_layer_computes(tiny_llama):
    model = load_model(str(tiny_llama))
    layer = model.model.layers[0]
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + [
        f"mlp.{n}_proj" for n in ("gate", "up", "down")
    ]
    random = torch.Generator().manual_seed(0)
    inputs = {}
    for name in names:
        read = torch.randn(64, layer.get_submodule(name).in_features, generator=random)
        read[:, 0] *= 50  # an outlier, as attention has them
        inputs[name] = Inputs(moments_CC=read.T @ read, sizes_C=read.abs().sum(0), tokens=64)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(ids).logits
        weight = layer.mlp.gate_proj.weight.clone()
        smooth(layer, inputs, args_of("awq"))
        after = model(ids).logits
    assert not torch.equal(layer.mlp.gate_proj.weight, weight)
    assert float((after - before).abs().max()) < 1e-3 * float(before.abs().max())


def test_clipped_groups_change_outputs_less(matrix):
    """Large weights of columns that little meets cost the others their steps."""
    random = torch.Generator().manual_seed(4)
    weights = matrix.clone()
    weights[:, 3] *= 8
    inputs = torch.randn(512, 64, generator=random)
    inputs[:, 3] *= 0.05
    args = args_of("awq")
    clipped_weights = clipped(weights, inputs.T @ inputs, args)
    changes = [
        float((inputs @ (nearest_values(each, args)[0] - weights).T).norm())
        for each in (clipped_weights, weights)
    ]
    assert changes[0] < 0.8 * changes[1]
    assert torch.equal(clipped(weights, torch.zeros(64, 64), args), weights)


def test_a_model_that_awqs_scaling_would_change_is_refused(tmp_path):
    """Gemma's norms multiply by 1 + weight: dividing the weight scales nothing down."""
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, head_dim=16, initializer_range=0.3,
    )  # fmt: skip
    GemmaForCausalLM(config).save_pretrained(tmp_path)
    rows = (CalibrationRow(mode="think", ids=(3, 4, 5, 6)),)
    rows = Calibration(origin="a test", rows=rows, seed=0, available={})
    source, model = open_compressed(str(tmp_path), TYPES["awq"]), load_model(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"changes what a layer computes.*--type gptq"):
        list(calibrated(source, rows, model))


def test_a_buffer_that_old_files_hold_stays(tiny_llama, tmp_path):
    old = shutil.copytree(tiny_llama, tmp_path / "old")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors = load_file(old / "model.safetensors") | {buffer: torch.ones(8)}
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    rows = (CalibrationRow(mode="think", ids=(3, 4, 5, 6)),)
    rows = Calibration(origin="a test", rows=rows, seed=0, available={})
    source = open_compressed(str(old), TYPES["gptq"])
    written = dict(calibrated(source, rows, load_model(str(tiny_llama))))
    assert torch.equal(written[buffer], torch.ones(8, dtype=torch.bfloat16))
    assert list(written) == [spec.name for spec in source.specs()]


@pytest.mark.parametrize("type", ["gptq", pytest.param("awq", marks=pytest.mark.slow)])
def test_the_file_holds_what_was_calibrated(type, learnt, tmp_path):
    """The command's rows: a file with both modes; the weights that are read back are those that were rounded."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"mode": mode, "messages": [{"role": "user", "content": question}, answer(mode, text)]}
        for mode, question, text in said(None)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = export_compressed(
        str(learnt), tmp_path / "out", type=type, rows=CalibrationConfig(file=str(file), rows=6)
    )
    counts = {
        mode: of_mode["rows"] for mode, of_mode in result.calibration.record()["modes"].items()
    }
    assert counts == {"think": 3, "no_think": 3}
    stored = load_model(str(tmp_path / "out"))
    stored(torch.tensor([[1, 2]]))  # compressed-tensors decompresses at the first use
    source, model = open_compressed(str(learnt), TYPES[type]), load_model(str(learnt))
    for _ in calibrated(source, result.calibration, model):
        pass
    for name, tensor in model.state_dict().items():
        change = (stored.state_dict()[name] - tensor).norm() / tensor.norm()
        assert change < (1e-6 if name.endswith("_proj.weight") else 0.003), name


def answer(mode, text):
    thought, _, right = text.rpartition("\n</think>\n\n")
    message = {"role": "assistant", "content": right}
    return message | ({"reasoning_content": thought} if mode == "think" else {})


def divergences(learnt, tokenizer, *modes) -> dict[str, float]:
    """KL a token in each mode, after GPTQ in 2 bits on rows of some modes."""
    weights = {**TYPES["gptq"].weights, "num_bits": 2}
    source = open_compressed(str(learnt), replace(TYPES["gptq"], weights=weights))
    whole, rounded = load_model(str(learnt)), load_model(str(learnt))
    for _ in calibrated(source, rows_of(tokenizer, *modes), rounded):
        pass
    tokens: dict[str, list] = {"think": [], "no_think": []}
    for mode, question, text in said(tokenizer):
        start = prompt(tokenizer, question, mode)
        read = token_divergences(scorer(whole), scorer(rounded), tokenizer, start, text)
        tokens[mode] += zip(read.kl, read.agreed, strict=True)
    return {mode: mean_divergence(of_mode).kl for mode, of_mode in tokens.items()}


def test_calibration_without_think_rows_costs_think_mode(learnt):
    """The trap: rows of no_think alone, whose traces are empty. Of three such models the KL in think was 2 to 5
    times that of both modes' rows."""
    tokenizer = load_chat_tokenizer(str(learnt))
    both = divergences(learnt, tokenizer, "think", "no_think")
    trap = divergences(learnt, tokenizer, "no_think")
    assert trap["think"] > 1.3 * both["think"]
