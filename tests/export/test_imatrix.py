"""Importance matrices: measured by hand, llama.cpp's form, what they do to the bits, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from transformers import AutoModelForCausalLM

from dualign.checkpoints.dtypes import Array
from dualign.cli.main import main
from dualign.errors import CheckpointError
from dualign.export import ggml
from dualign.export.convert import write_exact
from dualign.export.imatrix import (
    Importance,
    ImportanceFile,
    measure,
    read_importance,
    write_importance,
)
from dualign.export.model_source import open_source
from dualign.export.quantize import quantize

from . import llama_cpp
from .test_quantize import require_same_files

ROWS = ([5, 6, 7, 8], [9, 10, 11])


def measured(folder: Path) -> Importance:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return measure(model, ROWS, "llama", "rows")


def test_the_mean_square_of_each_input_column_is_its_importance(tiny_llama: Path) -> None:
    """The input of the first block's projections by hand: the normed embedding of each token."""
    importance = measured(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokens = torch.tensor([token for row in ROWS for token in row])
    with torch.inference_mode():
        inputs = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens))
    expected = inputs.double().square().mean(0).numpy()
    for part in ("attn_q", "attn_k", "attn_v"):
        columns = importance.columns(f"blk.0.{part}.weight")
        assert columns == pytest.approx(expected, rel=1e-5)
    assert set(importance.tokens.values()) == {7}
    assert len(importance.sums) == 4 * 7 and importance.columns("token_embd.weight") is None


def test_the_file_is_read_as_it_was_written(tiny_llama: Path, tmp_path: Path) -> None:
    importance = measured(tiny_llama)
    write_importance(tmp_path / "i.gguf", importance, "llama")
    reader = GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["rows"]
    shapes = {tensor.name: list(tensor.shape) for tensor in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.in_sum2"] == [96, 1]
    assert shapes["blk.0.ffn_down.weight.counts"] == [1, 1]
    again = read_importance(tmp_path / "i.gguf", {"blk.0.ffn_down.weight": (64, 96)})
    assert again.rows == 2 and again.tokens == importance.tokens
    for name, sums in importance.sums.items():
        assert np.array_equal(again.sums[name], sums)


def test_columns_that_matter_keep_their_numbers() -> None:
    rows = np.random.default_rng(0).normal(0, 0.02, (16, 256)).astype(np.float32)
    importance = np.ones(256, np.float32)
    importance[::8] = 100

    def error(weights: Array | None) -> float:
        packed = ggml.quantize_rows(rows, "Q2_K", weights)
        back = quants.dequantize(packed, GGMLQuantizationType.Q2_K)
        return float((importance * np.square(back - rows)).sum())

    assert error(importance) < 0.6 * error(None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sums: sums.pop("blk.1.attn_q.weight"), "blk.1.attn_q.weight is missing (1 of "),
        (
            lambda sums: sums.update({"blk.1.attn_q.weight": np.ones(3, np.float32)}),
            "has 3 columns, the model 64",
        ),
        (lambda sums: sums["blk.1.attn_q.weight"].fill(np.nan), "has values that aren't finite"),
    ],
)
def test_a_matrix_of_another_model_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    importance = measured(tiny_llama)
    sums = {name: array.copy() for name, array in importance.sums.items()}
    change(sums)
    changed = Importance(sums=sums, tokens=importance.tokens, datasets=("x",), rows=1)
    write_importance(tmp_path / "i.gguf", changed, "llama")
    source = open_source(str(tiny_llama), name=None, foreign=False)
    assert source.layout is not None
    shapes = {tensor.name: tensor.shape for tensor in source.layout.tensors}
    with pytest.raises(CheckpointError) as fault:
        read_importance(tmp_path / "i.gguf", shapes)
    assert said in str(fault.value)


def test_an_old_or_foreign_file_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(b"\x10\0\0\0\x13\0\0\0blk.0.attn_k.weight")
    with pytest.raises(CheckpointError, match="llama-imatrix --in-file"):
        read_importance(tmp_path / "old.dat", {})
    source = open_source(str(tiny_llama), name="x", foreign=False)
    write_exact(source, tmp_path / "model.gguf", "f32", None)
    with pytest.raises(CheckpointError, match=r"general.type is 'model', expected 'imatrix'"):
        read_importance(tmp_path / "model.gguf", {})
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_importance(tmp_path / "none.gguf", {})


def test_the_command_measures_on_rows_of_both_modes_and_accounts_for_them(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Add {n} and 1."}, answer]}
        for n in range(4)
        for answer in (
            {"role": "assistant", "content": f"<think>\n{n} + 1\n</think>\n\n{n + 1}"},
            {"role": "assistant", "content": f"{n + 1}"},
        )
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    command = ["export", str(tiny_llama), str(out), "--name", "x", "--types", "q4_0", "--no-check"]
    assert main([*command, "--imatrix", "--calibration", str(file)]) == 0
    account = json.loads((out / "export.json").read_text())["importance"]
    assert account["file"] == "x-imatrix.gguf" and account["tensors"] == 28
    assert {mode: count["rows"] for mode, count in account["modes"].items()} == {
        "think": 4,
        "no_think": 4,
    }
    assert all(count["tokens"] > 4 for count in account["modes"].values())
    fields = GGUFReader(out / "x-Q4_0.gguf").fields
    assert fields["quantize.imatrix.file"].contents() == "x-imatrix.gguf"
    assert fields["quantize.imatrix.chunks_count"].contents() == 8
    again = tmp_path / "again"
    command[2] = str(again)
    assert main([*command, "--imatrix", str(out / "x-imatrix.gguf")]) == 0
    files = [GGUFReader(folder / "x-Q4_0.gguf") for folder in (out, again)]
    for first, second in zip(*(file.tensors for file in files), strict=True):
        assert np.array_equal(first.data, second.data)
    command[2] = str(tmp_path / "third")
    command[6] = "f16,q8_0"
    assert main([*command, "--imatrix"]) == 2
    assert "--imatrix: f16, q8_0 take no importance matrix" in capsys.readouterr().err


@pytest.mark.skipif(
    llama_cpp.folder() is None,
    reason="needs llama.cpp's quantizer of files: llama-cpp-python, or LLAMA_CPP_LIB",
)
@pytest.mark.parametrize("type", ["q2_k", "iq3_xxs", "iq2_xs", "iq1_m", "q4_0"])
def test_a_file_packed_by_importance_is_llama_cpps_to_the_byte(
    make: Any, tmp_path: Path, type: str
) -> None:
    folder = make("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=2)
    source = open_source(str(folder), name="x", foreign=False)
    exact, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("exact", "ours", "theirs"))
    write_exact(source, exact, "f16", None)
    importance = measured(folder)
    matrix = ImportanceFile(importance=importance, file=tmp_path / "i.gguf", record={})
    quantize(exact, ours, type=type, importance=matrix)
    columns = {name: importance.columns(name) for name in importance.sums}
    assert llama_cpp.quantize(exact, theirs, type, columns) == 0
    require_same_files(ours, theirs)
