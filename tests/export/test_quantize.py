"""Packing: the mixture by hand, llama.cpp's numbers, its messages."""

import ctypes
import hashlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from dualign.errors import CheckpointError
from dualign.export import ggml
from dualign.export.convert import write_exact
from dualign.export.model_source import open_source
from dualign.export.quantize import quantize, types_of

BLOCK = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def shapes(blocks: int, width: int, *, tied: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (1000, width)}
    for block in range(blocks):
        found |= {f"blk.{block}.{name}.weight": (width, width) for name in BLOCK}
        found[f"blk.{block}.attn_norm.weight"] = (width,)
    return found if tied else found | {"output.weight": (1000, width)}


def test_q4_k_m_keeps_six_bits_where_llama_cpp_does() -> None:
    """16 layers: the first 2, the last 2, and of those between each third from the 5th on."""
    found = types_of(shapes(16, 256, tied=True), "q4_k_m")
    six = [i for i in range(16) if found[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert six == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [found[f"blk.{i}.attn_v.weight"] for i in six] == ["Q6_K"] * 8
    assert {found[f"blk.{i}.attn_q.weight"] for i in range(16)} == {"Q4_K"}
    assert "blk.0.attn_norm.weight" not in found


def test_the_output_matrix_has_six_bits_and_the_embedding_too_when_it_is_both() -> None:
    assert types_of(shapes(2, 256, tied=True), "q4_k_m")["token_embd.weight"] == "Q6_K"
    untied = types_of(shapes(2, 256, tied=False), "q4_k_m")
    assert (untied["output.weight"], untied["token_embd.weight"]) == ("Q6_K", "Q4_K")


def test_rows_that_no_block_divides_are_packed_otherwise() -> None:
    found = types_of(shapes(8, 576, tied=True), "q4_k_m")
    assert set(found.values()) == {"Q5_0", "Q8_0"}
    assert set(types_of(shapes(8, 40, tied=True), "q8_0").values()) == {"F16"}


@pytest.mark.parametrize(("type", "worst"), [("Q4_K", 0.08), ("Q6_K", 0.02)])
def test_llama_cpp_packs_rows_that_unpack_near_where_they_were(type: str, worst: float) -> None:
    rows = np.random.default_rng(0).normal(0, 0.02, (8, 512)).astype(np.float32)
    packed = ggml.quantize_rows(rows, type)
    back = quants.dequantize(packed, GGMLQuantizationType[type])
    error = np.sqrt(np.square(back - rows).mean() / np.square(rows).mean())
    assert 0.001 < error < worst


def test_without_llama_cpps_quantizer_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ggml, "_candidates", lambda: iter([Path("/none.so")]))
    ggml.library.cache_clear()
    with pytest.raises(CheckpointError, match=r"q4_k_m needs .*pip install 'dualign\[gguf\]'"):
        ggml.library()
    ggml.library.cache_clear()


def test_a_tensor_that_packing_would_ruin_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    source = open_source(str(tiny_llama), name=None, foreign=False)
    write_exact(source, tmp_path / "a.gguf", "f32", None)
    reader = GGUFReader(tmp_path / "a.gguf", "r+")
    rows = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    rows.data[:] = 0.001
    rows.data[:, ::32] = 1e4 * np.random.default_rng(0).normal(size=rows.data[:, ::32].shape)
    rows.data[:, 1::32] = np.nan
    reader.data.flush()
    with pytest.raises(
        CheckpointError, match=r"blk.1.ffn_up.weight: quantizing to Q8_0 changes it"
    ):
        quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="q8_0")


@pytest.mark.parametrize(("type", "code"), [("q8_0", 7), ("q4_k_m", 15)])
def test_a_packed_file_is_llama_cpps_to_the_byte(
    make: "object", tmp_path: Path, type: str, code: int
) -> None:
    bindings = pytest.importorskip(
        "llama_cpp", reason="needs llama-cpp-python, which has llama.cpp's quantizer of files"
    )
    folder = make("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=9)  # type: ignore[operator]
    source = open_source(str(folder), name="x", foreign=False)
    exact, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("exact", "ours", "theirs"))
    write_exact(source, exact, "f16", None)
    quantize(exact, ours, type=type)
    given = bindings.llama_model_quantize_default_params()
    given.ftype, given.nthread = code, 1
    names = str(exact).encode(), str(theirs).encode()
    assert bindings.llama_model_quantize(*names, ctypes.byref(given)) == 0
    stored = [
        {tensor.name: tensor for tensor in GGUFReader(file).tensors} for file in (ours, theirs)
    ]
    for name, item in stored[0].items():
        assert item.tensor_type == stored[1][name].tensor_type, name
        digests = [hashlib.sha256(file[name].data.tobytes()).digest() for file in stored]
        assert digests[0] == digests[1], name
