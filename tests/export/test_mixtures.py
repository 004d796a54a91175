"""Types of tensors: those of llama.cpp's own quantizer of files (llama_model_quantize of v0.5.0).

llama_cpp_types.json was read from its files: runs of a type over the blocks, or why it refused.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from dualign.export.mixtures import MIXTURES, needing_importance, types_of

_TABLE = json.loads((Path(__file__).parent / "llama_cpp_types.json").read_text())


def shapes(
    *, blocks: int, width: int, inner: int, keys: int, tied: bool
) -> dict[str, tuple[int, ...]]:
    block = {
        "attn_q": (width, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
        "attn_norm": (width,),
    }
    of_blocks = {
        f"blk.{number}.{name}.weight": shape
        for number in range(blocks)
        for name, shape in block.items()
    }
    ends = {"token_embd.weight": (1000, width)} | ({} if tied else {"output.weight": (1000, width)})
    return ends | of_blocks


def runs(types: dict[str, str]) -> dict[str, str]:
    parts: dict[str, list[str]] = {}
    for name, type in types.items():
        parts.setdefault(name.split(".")[-2], []).append(type)
    return {
        part: listed[0]
        if len(set(listed)) == 1
        else " ".join(f"{len(list(run))}x{type}" for type, run in groupby(listed))
        for part, listed in parts.items()
    }


@pytest.mark.parametrize("case", list(_TABLE))
def test_each_tensor_gets_the_type_that_llama_cpp_gives_it(case: str) -> None:
    expected: dict[str, Any] = dict(_TABLE[case])
    model = expected.pop("model")
    importance = model.pop("importance")
    assert set(expected) == set(MIXTURES)
    for type, types in expected.items():
        actual = types_of(shapes(**model), type, importance=importance)
        needing = needing_importance(actual, type)
        if types == "needs an importance matrix":
            assert needing, type
        else:
            assert runs(actual) == types, type
            assert importance or not needing, type


def test_a_model_of_80_blocks_keeps_five_bits_for_its_small_values() -> None:
    """llama.cpp's rule for the 70B models, by hand: three and four bits become five."""
    large = shapes(blocks=80, width=256, inner=256, keys=64, tied=False)
    value = "blk.20.attn_v.weight"
    assert types_of(large, "q4_k_s")[value] == types_of(large, "q3_k_s")[value] == "Q5_K"
    assert types_of(large, "iq2_xs")[value] == "Q4_K"
    alone = shapes(blocks=80, width=256, inner=256, keys=256, tied=False)
    assert types_of(alone, "q4_k_s")[value] == "Q4_K"


def test_rows_that_no_block_divides_stay_in_float16() -> None:
    odd = shapes(blocks=2, width=40, inner=64, keys=40, tied=True)
    types = types_of(odd, "iq4_xs")
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "F16"
    assert types["blk.0.ffn_down.weight"] == "IQ4_NL"
