"""`context` of training stages: the model that trains, its reference and its result have the positions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SmolLM3Config,
)

from dualign.checkpoints.context import ContextConfig
from dualign.data.config import DataConfig, SourceConfig
from dualign.models.source import resolve_model
from dualign.preference.config import PreferenceStage
from dualign.preference.reference import reference_copy, with_cached_reference
from dualign.preference.train import run as prefer
from dualign.sft.config import SFTStage
from dualign.sft.train import run as sft
from dualign.training.adapter import AdapterConfig
from dualign.training.policy import load_start
from dualign.training.positions import position_notes
from dualign.training.precision import resolved
from dualign.training.start_model import start_issues

CONFIGS = {"llama": LlamaConfig, "smollm3": SmolLM3Config, "qwen3": Qwen3Config}
POSITIONS = 64
FACTORS = [1.0 + 0.25 * i for i in range(8)]
ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": POSITIONS}
# What the recipe says -> what a user of transformers writes, and max_position_embeddings.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "linear": ({}, {"factor": 4.0}, POSITIONS),
    "dynamic": ({}, {"factor": 4.0}, POSITIONS),
    "yarn": ({"settings": {"beta_fast": 16}}, {**ORIGINAL, "beta_fast": 16}, 4 * POSITIONS),
    "longrope": (
        {"settings": {"short_factor": [1.0] * 8, "long_factor": FACTORS}},
        {**ORIGINAL, "short_factor": [1.0] * 8, "long_factor": FACTORS},
        4 * POSITIONS,
    ),
    "llama3": (
        {"settings": {"low_freq_factor": 2.0}},
        {**ORIGINAL, "low_freq_factor": 2.0, "high_freq_factor": 4.0},
        4 * POSITIONS,
    ),
}
TRAIN = {"max_steps": 1, "logging_steps": 1, "learning_rate": 1e-2, "gradient_checkpointing": False}
YARN = ContextConfig(length=4 * POSITIONS)


@pytest.fixture(scope="session")
def starts(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Path]:
    """A tiny model of 64 positions of each family, whose tokenizer takes as many."""
    folders = {}
    for family, config in CONFIGS.items():
        torch.manual_seed(0)
        folders[family] = tmp_path_factory.mktemp(family)
        AutoModelForCausalLM.from_config(config(**shape())).save_pretrained(folders[family])
        tokenizer.save_pretrained(folders[family])
        file = folders[family] / "tokenizer_config.json"
        settings = json.loads(file.read_text()) | {"model_max_length": POSITIONS}
        file.write_text(json.dumps(settings))
    return folders


def shape(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 5e3,
        "max_position_embeddings": POSITIONS, "tie_word_embeddings": True, "pad_token_id": 0,
        "bos_token_id": None, "eos_token_id": 2, "initializer_range": 0.1, **changes,
    }  # fmt: skip


def stage_of(kind: type[Any], start: Path, rows: Path, **keys: Any) -> Any:
    file = rows / ("pairs.jsonl" if kind is PreferenceStage else "train.jsonl")
    data = DataConfig(
        sources=(SourceConfig(path=str(file)),),
        max_tokens=160,
        **({} if kind is SFTStage else PAIRS),
    )
    return kind(**{"name": "s", "model": str(start), "data": data, "train": TRAIN, **keys})


PAIRS = {"packing": "none"}


@torch.no_grad()
def logits(model: Any, length: int = 200) -> torch.Tensor:
    tokens = torch.randint(3, 300, (1, length), generator=torch.Generator().manual_seed(1))
    return model.eval()(tokens).logits


def by_transformers(family: str, kind: str, weights: Path) -> torch.Tensor:
    """The logits of weights under settings that a user of transformers writes."""
    _, rope, positions = KINDS[kind]
    settings = shape(max_position_embeddings=positions)
    parameters = {"rope_type": kind, "rope_theta": settings.pop("rope_theta"), **rope}
    config = CONFIGS[family](**settings, rope_parameters=parameters)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = model.load_state_dict(load_file(weights / "model.safetensors"), strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys
    model.tie_weights()
    return logits(model)


FAMILY_OF = dict(zip(KINDS, [*CONFIGS, *CONFIGS], strict=False))
CASES = [
    pytest.param(kind, family, marks=() if FAMILY_OF[kind] == family else pytest.mark.slow)
    for kind in KINDS
    for family in CONFIGS
]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_start_and_result_compute_what_transformers_computes(
    kind: str, family: str, starts: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    context = ContextConfig(length=4 * POSITIONS, rope=kind, **KINDS[kind][0])
    packing = "best_fit" if kind in ("linear", "yarn", "llama3") else "none"
    data = DataConfig(
        sources=(SourceConfig(path=str(rows / "train.jsonl")),),
        max_tokens=POSITIONS,
        packing=packing,
    )
    stage = stage_of(SFTStage, starts[family], rows, context=context, data=data)
    source = resolve_model(str(starts[family]))
    start = load_start(resolved(stage_of(SFTStage, starts[family], rows, context=context,
                                         attn_implementation="sdpa")), source)  # fmt: skip
    assert torch.equal(logits(start), by_transformers(family, kind, starts[family]))
    sft(stage, tmp_path, seed=0)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(saved), by_transformers(family, kind, tmp_path))
    assert saved.config.max_position_embeddings == KINDS[kind][2]
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 4 * POSITIONS


def test_full_preference_stage_compares_with_the_stretched_start_and_hands_it_on(
    starts: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    stage = stage_of(PreferenceStage, starts["llama"], rows, context=YARN)
    settled = replace(resolved(stage), attn_implementation="sdpa")
    copy = reference_copy(settled, resolve_model(stage.model))
    assert copy is not None
    assert copy.config.rope_parameters["rope_type"] == "yarn"
    (tmp_path / "first").mkdir()
    outcome = prefer(stage, tmp_path / "first", seed=0)
    assert outcome.metrics["first_loss"] == pytest.approx(1.0, abs=1e-6)  # APO-zero of equal models
    (tmp_path / "second").mkdir()
    second = stage_of(PreferenceStage, tmp_path / "first", rows)
    prefer(second, tmp_path / "second", seed=0)
    configs = [read(tmp_path / name / "config.json") for name in ("first", "second")]
    assert configs[0]["rope_parameters"] == configs[1]["rope_parameters"]
    assert configs[1]["rope_parameters"]["factor"] == 4.0
    assert configs[1]["max_position_embeddings"] == 4 * POSITIONS


def test_cached_reference_of_other_positions_is_not_taken(
    starts: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """The weights and the pairs are the same, and the log-probabilities aren't."""
    from dualign.data.prepare import prepare_pairs
    from dualign.training.rows import request_rows

    names = set()
    source = resolve_model(str(starts["llama"]))
    for context in (None, YARN, ContextConfig(length=4 * POSITIONS, rope="linear")):
        stage = resolved(stage_of(PreferenceStage, starts["llama"], rows, context=context,
                                  reference="cached"))  # fmt: skip
        data = prepare_pairs(request_rows(stage, source, seed=0))
        cached = with_cached_reference(data, stage, source, tmp_path).train
        assert isinstance(cached, Dataset)
        names.add(cached._fingerprint)
    assert len(names) == 3


def test_adapter_is_folded_into_a_model_with_the_positions(
    starts: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """The first stage leaves an adapter; the reference of the second is that adapter, stretched."""
    lora = AdapterConfig(r=4, target_modules=("q_proj", "k_proj"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    sft(stage_of(SFTStage, starts["llama"], rows, lora=lora), tmp_path / "first", seed=0)
    stage = stage_of(
        PreferenceStage, tmp_path / "first", rows, lora=lora, save="merged", context=YARN
    )
    outcome = prefer(stage, tmp_path / "second", seed=0)
    assert outcome.metrics["first_loss"] == pytest.approx(1.0, abs=1e-6)
    assert outcome.checks["reload_max_logit_difference"] < 1e-4
    config = read(tmp_path / "second" / "config.json")
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["max_position_embeddings"] == 4 * POSITIONS
    assert not (tmp_path / "second" / "adapter").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"save": None}, "set save: merged, or stretch that first: a merge stage"),
        ({"save": "adapter"}, "an adapter names a base without these positions"),
        ({"quantization": "nf4"}, "loaded on it: stretch that first: a merge stage"),
    ],
)
def test_adapter_that_would_be_loaded_on_a_base_without_the_positions_is_refused(
    keys: dict[str, Any], words: str, starts: dict[str, Path], rows: Path
) -> None:
    stage = stage_of(SFTStage, starts["llama"], rows, lora=AdapterConfig(), context=YARN, **keys)
    assert [message for key, message in stage.problems() if key == "context" and words in message]


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_what_can_not_be_is_said_before_the_first_step(
    starts: dict[str, Path], rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(**keys: Any) -> str:
        stage = stage_of(SFTStage, starts["llama"], rows, **keys)
        return "; ".join(f"{key}: {message}" for key, message in start_issues(stage))

    assert "context: 64 positions times a factor of 1" in said(context=ContextConfig(length=64))
    dynamic = ContextConfig(length=256, rope="dynamic")
    assert "context: dynamic positions depend on the longest row" in said(context=dynamic)
    assert said(context=YARN) == ""
    assert "positions times" in said(
        model="embedded:smollm2-135m-instruct", context=ContextConfig(length=4096)
    )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    pairs = stage_of(PreferenceStage, starts["llama"], rows, context=YARN, reference="cached")
    assert ["context" for key, says in start_issues(pairs) if "FSDP computes" in says]


def test_rows_longer_than_the_positions_are_told() -> None:
    model = {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4}}
    counts = {"by": [{"kept": 2, "max_tokens": 70}, {"kept": 0, "max_tokens": 999}]}
    packed = stage_of(SFTStage, Path("m"), Path("rows"))
    assert position_notes(packed, model, counts) == [
        "warning: rows of up to 70 tokens are longer than the model's 64 positions: stretch its context "
        "(docs/long-context.md), or lower data.max_tokens"
    ]
    # Positions restart with each document of a packed row, which may have 160 tokens.
    assert position_notes(packed, model, {"by": [{"kept": 2, "max_tokens": 64}]}) == []
    assert "up to 160 tokens" in position_notes(packed, model, None)[0]
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    (note,) = position_notes(packed, {**model, "rope_parameters": longrope}, {"by": [
        {"kept": 2, "max_tokens": 64}]})  # fmt: skip
    assert "more than 32 tokens" in note
    scaled = stage_of(SFTStage, Path("m"), Path("rows"), context=ContextConfig(
        length=128, settings={"attention_factor": 1.5}))  # fmt: skip
    assert "vLLM doesn't read attention_factor" in position_notes(scaled, model, {"by": []})[0]
