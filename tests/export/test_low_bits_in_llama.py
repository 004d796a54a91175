"""Types that need an importance matrix, loaded in llama.cpp: its numbers are those of the file in transformers.

llama.cpp rounds what it multiplies with to 8 bits, so both agree to a few hundredths of what packing changed.
"""

from pathlib import Path

import pytest
import torch

from dualign.export.convert import write_exact
from dualign.export.dequantized import dequantize_into
from dualign.export.imatrix import ImportanceFile, measure
from dualign.export.llama_runtime import GreedyToken, installed, load
from dualign.export.mixtures import needing_importance, types_of
from dualign.export.model_source import open_source
from dualign.export.quantize import quantize
from dualign.models.loading import load_model

from .conftest import Make

NEEDING = ("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
SHORT = "q2_k_s"
"""The others make tables first, which takes seconds."""


def prompts(count: int, length: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(2)
    return [torch.randint(20, 1000, (length,), generator=made).tolist() for _ in range(count)]


def leads(model: torch.nn.Module, asked: list[list[int]], tokens: list[GreedyToken]) -> list[float]:
    """How far llama.cpp's tokens lead in transformers; negative where another is best."""
    values = []
    for ids, token in zip(asked, tokens, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        others = logits.clone()
        others[token.token] = -torch.inf
        values.append(float(logits[token.token] - others.max()))
    return values


@pytest.mark.parametrize(
    "type", [t if t == SHORT else pytest.param(t, marks=pytest.mark.slow) for t in NEEDING]
)
def test_llama_cpp_gives_the_numbers_of_the_file(type: str, make: Make, tmp_path: Path) -> None:
    if "xllamacpp" not in installed():
        pytest.skip("needs xllamacpp")
    folder = make("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=2)
    source = open_source(str(folder), name="x", foreign=False)
    assert source.layout is not None
    shapes = {tensor.name: tensor.shape for tensor in source.layout.tensors}
    assert needing_importance(types_of(shapes, type), type)
    exact, packed = tmp_path / "exact.gguf", tmp_path / "packed.gguf"
    write_exact(source, exact, "f16", None)
    model = load_model(str(folder))
    importance = measure(model, prompts(4, 32), "llama", "rows")
    quantize(
        exact,
        packed,
        type=type,
        importance=ImportanceFile(importance=importance, file=tmp_path / "i", record={}),
    )
    asked = prompts(12, 24)
    runtime = load(packed, "xllamacpp", context=64)
    try:
        tokens = [runtime.greedy(ids, 1)[0] for ids in asked]
    finally:
        runtime.close()
    before = leads(model, asked, tokens)
    dequantize_into(model, packed, source.layout.tensors)
    after = leads(model, asked, tokens)
    said = [token.margin for token in tokens]
    off = [
        sum(abs(a - b) for a, b in zip(side, said, strict=True) if b is not None)
        for side in (after, before)
    ]
    assert off[0] < 0.1 * off[1]  # 0.01 to 0.05 of it
