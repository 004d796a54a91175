"""Packing: llama.cpp's numbers, its messages."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from dualign.errors import CheckpointError
from dualign.export import ggml
from dualign.export.convert import write_exact
from dualign.export.model_source import open_source
from dualign.export.quantize import quantize

from . import llama_cpp


@pytest.mark.parametrize(
    ("type", "worst"),
    [
        ("Q6_K", 0.02),
        ("Q5_K", 0.04),
        ("Q4_K", 0.08),
        ("IQ4_XS", 0.08),
        ("Q3_K", 0.16),
        ("IQ3_S", 0.18),
        ("Q2_K", 0.31),
    ],
)
def test_llama_cpp_packs_rows_that_unpack_near_where_they_were(type: str, worst: float) -> None:
    rows = np.random.default_rng(0).normal(0, 0.02, (8, 512)).astype(np.float32)
    packed = ggml.quantize_rows(rows, type)
    back = quants.dequantize(packed, GGMLQuantizationType[type])
    error = np.sqrt(np.square(back - rows).mean() / np.square(rows).mean())
    assert worst / 2 < error < worst


def test_without_llama_cpps_quantizer_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ggml, "_candidates", lambda: iter([Path("/none.so")]))
    ggml.library.cache_clear()
    with pytest.raises(
        CheckpointError, match=r"need llama.cpp's quantizer: pip install 'dualign\[gguf\]'"
    ):
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


@pytest.mark.skipif(
    llama_cpp.folder() is None,
    reason="needs llama.cpp's quantizer of files: llama-cpp-python, or LLAMA_CPP_LIB",
)
@pytest.mark.parametrize(
    "type",
    [
        "q8_0",
        "q6_k",
        "q5_k_m",
        "q4_k_m",
        "q3_k_m",
        "q2_k",
        "q4_0",
        "q5_1",
        "iq4_nl",
        "iq4_xs",
        "iq3_s",
    ],
)
def test_a_packed_file_is_llama_cpps_to_the_byte(make: "object", tmp_path: Path, type: str) -> None:
    folder = make("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=9)  # type: ignore[operator]
    source = open_source(str(folder), name="x", foreign=False)
    exact, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("exact", "ours", "theirs"))
    write_exact(source, exact, "f16", None)
    quantize(exact, ours, type=type)
    assert llama_cpp.quantize(exact, theirs, type, None) == 0
    require_same_files(ours, theirs)


def require_same_files(ours: Path, theirs: Path) -> None:
    stored = [
        {tensor.name: tensor for tensor in GGUFReader(file).tensors} for file in (ours, theirs)
    ]
    for name, item in stored[0].items():
        assert item.tensor_type == stored[1][name].tensor_type, name
        digests = [hashlib.sha256(file[name].data.tobytes()).digest() for file in stored]
        assert digests[0] == digests[1], name
