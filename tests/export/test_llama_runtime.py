"""SmolLM3's NoPE layers and YaRN in llama.cpp: the same numbers as transformers, past the original length.

Tiny random models in float32, where both agree to a thousandth of a nat; a file that lost one of
the settings doesn't.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from dualign.checkpoints.context import ContextConfig, stretched_config
from dualign.errors import CheckpointError
from dualign.export.convert import write_exact
from dualign.export.llama_runtime import RUNTIMES, GreedyToken, greedy_tokens, installed, load
from dualign.export.model_source import open_source
from dualign.models.tokenizer import load_chat_tokenizer

from .conftest import YARN, Make

LENGTHS = (10, 60, 150, 230)  # YaRN's original length is 64
NEW = 6
ENDS = (0, 2)  # <|endoftext|> and <|im_end|>, where llama.cpp stops


def needed(runtime: str) -> None:
    if runtime not in installed():
        pytest.skip(f"needs {runtime}")


def prompts() -> list[list[int]]:
    made = torch.Generator().manual_seed(1)
    return [torch.randint(20, 1000, (length,), generator=made).tolist() for length in LENGTHS]


def by_transformers(folder: Path) -> list[list[GreedyToken]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for ids in prompts():
        rows = list(ids)
        made = []
        for _ in range(NEW):
            with torch.inference_mode():
                top = model(torch.tensor([rows])).logits[0, -1].topk(2)
            made.append(GreedyToken(int(top.indices[0]), float(top.values[0] - top.values[1])))
            rows.append(made[-1].token)
            if made[-1].token in ENDS:
                break
        found.append(made)
    return found


def by_llama_cpp(file: Path, runtime: str) -> list[list[GreedyToken]]:
    loaded = load(file, runtime, context=256)
    try:
        return [loaded.greedy(ids, NEW) for ids in prompts()]
    finally:
        loaded.close()


def written(folder: Path, out: Path) -> Path:
    write_exact(open_source(str(folder), name="x", foreign=False), out, "f32", None)
    return out


def furthest(ours: list[list[GreedyToken]], other: list[list[GreedyToken]]) -> float:
    """The largest difference of a lead, infinite where the tokens differ; `ours` is llama.cpp's."""
    if [[c.token for c in row] for row in ours] != [[c.token for c in row] for row in other]:
        return float("inf")
    pairs = [p for a, b in zip(ours, other, strict=True) for p in zip(a, b, strict=True)]
    return max(abs(a.margin - b.margin) for a, b in pairs if a.margin is not None)


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_nope_and_yarn_survive_beyond_the_original_length(
    runtime: str, tiny_smollm3: Path, tmp_path: Path
) -> None:
    needed(runtime)
    file = written(tiny_smollm3, tmp_path / "a.gguf")
    assert furthest(by_llama_cpp(file, runtime), by_transformers(tiny_smollm3)) < 2e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope.scaling.factor", 1.0), ("rope.freq_base", 2e6), ("rope.scaling.original_context_length", 1024)],
)  # fmt: skip
def test_a_file_that_lost_a_setting_gives_other_numbers(
    key: str, value: float, tiny_smollm3: Path, tmp_path: Path
) -> None:
    """So the test above can fail."""
    needed("xllamacpp")
    file = written(tiny_smollm3, tmp_path / "a.gguf")
    reader = GGUFReader(file, "r+")
    field = reader.fields[f"smollm3.{key}"]
    field.parts[field.data[0]][0] = value
    reader.data.flush()
    assert furthest(by_llama_cpp(file, "xllamacpp"), by_transformers(tiny_smollm3)) > 1e-2


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}\n{{ foo( }}{% endfor %}", ["Unexpected token: }}"]),
        ("{{ raise_exception('no') }}", ["line 1, column 19", "Jinja Exception: no"]),
    ],
    ids=["not parsed", "raises"],
)
def test_a_template_that_llama_cpp_cannot_take_is_told_with_its_own_words(
    template: str, words: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    """Its exception says only that the server failed to init; the reason is in its log."""
    needed("xllamacpp")
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    file = written(folder, tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match=r"a\.gguf: llama\.cpp can't load it: ") as caught:
        load(file, "xllamacpp", context=64)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "Failed to init server" not in message and "--no-jinja" not in message


def test_a_file_that_is_no_model_is_told_with_its_own_words(tmp_path: Path) -> None:
    needed("xllamacpp")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(CheckpointError, match=r"llama\.cpp can't load it: \w") as caught:
        load(tmp_path / "a.gguf", "xllamacpp", context=64)
    assert "Failed to init server" not in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_other_architectures_give_transformers_numbers(
    kind: str, make: Make, tmp_path: Path
) -> None:
    needed("xllamacpp")
    rope = YARN if kind == "qwen3" else {"rope_type": "default", "rope_theta": 1e4}
    biased = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    folder = make(kind, rope_parameters=rope, tie_word_embeddings=kind != "qwen2", **biased)
    file = written(folder, tmp_path / "a.gguf")
    assert furthest(by_llama_cpp(file, "xllamacpp"), by_transformers(folder)) < 2e-3


@pytest.mark.parametrize(
    ("context", "positions"),
    [
        ({"rope": "llama3", "length": 512, "settings": {"low_freq_factor": 1.0}}, 512),
        ({"rope": "linear", "length": 256}, 64),
    ],
    ids=lambda item: item["rope"] if isinstance(item, dict) else "",
)
def test_a_stretched_context_survives(
    context: dict[str, Any], positions: int, make: Make, tmp_path: Path
) -> None:
    """As a stage's `context` writes it; with linear, llama.cpp's length is not transformers'."""
    needed("xllamacpp")
    shape = {"max_position_embeddings": 64, "head_dim": 16, "model_type": "llama"}
    rope = stretched_config({**shape, "rope_theta": 1e4}, ContextConfig(**context))
    assert rope["max_position_embeddings"] == positions
    kept = ("rope_parameters", "max_position_embeddings")
    folder = make("llama", **{key: rope[key] for key in kept})
    file = written(folder, tmp_path / "a.gguf")
    fields = GGUFReader(file).fields
    assert fields["llama.context_length"].contents() == context["length"]
    assert furthest(by_llama_cpp(file, "xllamacpp"), by_transformers(folder)) < 2e-3


def test_the_settings_are_in_the_file(tiny_smollm3: Path, tmp_path: Path) -> None:
    fields = GGUFReader(written(tiny_smollm3, tmp_path / "a.gguf")).fields
    found = {key: fields[f"smollm3.{key}"].contents() for key in (
        "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.freq_base", "context_length", "attention.head_count_kv",
    )}  # fmt: skip
    assert list(found.values()) == ["yarn", 4.0, 64, 5e6, 256, 2]


def test_tokens_inside_a_character_are_kept_without_a_lead() -> None:
    """The server lists only tokens that end one."""
    listed = [{"id": 5, "top_logprobs": [{"logprob": -2.0}, {"logprob": -0.5}]}]
    assert greedy_tokens([7, 5, 7], listed) == [
        GreedyToken(7, None),
        GreedyToken(5, 1.5),
        GreedyToken(7, None),
    ]


def test_an_answer_that_stops_inside_a_character_has_no_lead(make: Make, tmp_path: Path) -> None:
    """The server leaves its list out where it would be empty."""
    needed("xllamacpp")
    folder = make("llama", num_hidden_layers=1, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inside = load_chat_tokenizer(str(folder)).convert_tokens_to_ids("Ã")  # the byte c3, of two
    with torch.no_grad():
        state = model.model(torch.tensor([[20, 21]])).last_hidden_state[0, -1]
        model.lm_head.weight.zero_()[inside] = state
    folder = shutil.copytree(folder, tmp_path / "model")
    model.save_pretrained(folder)
    loaded = load(written(folder, tmp_path / "a.gguf"), "xllamacpp", context=64)
    assert loaded.greedy([20, 21], 1) == [GreedyToken(inside, None)]
    loaded.close()


def test_a_file_that_llama_cpp_can_not_read_is_named(tmp_path: Path) -> None:
    needed("xllamacpp")
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(CheckpointError, match=r"a.gguf: llama.cpp can't load it"):
        load(tmp_path / "a.gguf", "xllamacpp", context=256)
