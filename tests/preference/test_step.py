"""Pairs that share their prompt train as TRL's DPOTrainer trains them, step by step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SmolLM3Config,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

from dualign.attention.function import ATTENTION
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import PairData
from dualign.models.source import resolve_model
from dualign.preference.config import PreferenceStage, Reference
from dualign.preference.losses.table import LOSSES
from dualign.preference.train import build_trainer
from dualign.training.adapter import AdapterConfig

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
# SmolLM3's second layer has no positions; Gemma-3's first sees less than the prompts.
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layer_interval=2),
    "qwen3": Qwen3Config(**SIZES),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
    ),
}
OTHER_SIZES: dict[str, Any] = {
    name: SIZES[name]
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "eos_token_id")
} | {"initializer_range": 0.2}
STEPS = 20
FIGURES = (
    *("loss", "grad_norm", "rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected"),
    *("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"),
)


class TokenizedPairs(DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class FirstGradient(TrainerCallback):
    """Keeps the gradient of the first step, by parameter."""

    def __init__(self) -> None:
        self.gradient: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        if not self.gradient:
            named = kwargs["model"].named_parameters()
            self.gradient = {name: p.grad.clone() for name, p in named if p.grad is not None}


def random_pairs(count: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(3)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(2, SIZES["vocab_size"], (length,), generator=draw).tolist()

    return [
        {"prompt_ids": ids(5, 25), "chosen_ids": ids(1, 12), "rejected_ids": ids(1, 12), "group": 0}
        for _ in range(count)
    ]


def saved(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ours_alone(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    train: dict[str, Any],
    *,
    attention: Any = ATTENTION,
    lora: bool = True,
    batch_tokens: int | None = None,
    reference: Reference = "auto",
) -> DPOTrainer:
    stage = PreferenceStage(
        name="apo",
        model=str(folder),
        data=DataConfig(sources=(SourceConfig(path="pairs.jsonl"),), packing="none"),
        lora=AdapterConfig(r=4) if lora else None,
        attn_implementation=attention,
        batch_tokens=batch_tokens,
        reference=reference,
        train={"gradient_checkpointing": False, **train},
    )
    data = PairData(
        train=Dataset.from_list(rows),
        validation=None,
        groups=(("no_think", "pairs"),),
        rows={},
        sources=(),
    )
    source = resolve_model(stage.model)
    return build_trainer(stage, source, data, tokenizer, folder / "ours", seed=5)


def trainers(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    train: dict[str, Any],
    *,
    attention: Any = ATTENTION,
    lora: bool = True,
) -> tuple[DPOTrainer, DPOTrainer]:
    """Ours and TRL's, on the same pairs."""
    train = {"learning_rate": 1e-3, "logging_steps": 1, "gradient_checkpointing": False, **train}
    train |= {"per_device_train_batch_size": 2, "save_strategy": "no", "beta": 0.3}
    rows = random_pairs(12)
    ours = ours_alone(folder, tokenizer, rows, train, attention=attention, lora=lora)
    peft = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules="all-linear")
    theirs = TokenizedPairs(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=DPOConfig(
            output_dir=str(folder / "theirs"),
            seed=5,
            data_seed=5,
            max_length=None,
            report_to="none",
            bf16=False,
            **train,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft if lora else None,
    )
    return ours, theirs


def figures(trainer: DPOTrainer) -> list[dict[str, float]]:
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: float(entry[name]) for name in FIGURES} for entry in log]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(SIZES["vocab_size"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
        pad_token="w0",
        eos_token="w1",
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_twenty_steps_are_trls(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = saved(tmp_path, CONFIGS[name], tokenizer)
    pair = trainers(folder, tokenizer, {"max_steps": STEPS, "loss_type": "apo_zero"})
    gradients = []
    for trainer in pair:
        trainer.add_callback(first := FirstGradient())
        trainer.train()
        gradients.append(first.gradient)
    ours, theirs = map(figures, pair)
    assert len(ours) == STEPS and ours[0]["loss"] == pytest.approx(1.0, abs=1e-6)
    for got, expected in zip(ours, theirs, strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4), json.dumps([got, expected])
    got, expected = (torch.cat([g[k].reshape(-1) for k in sorted(g)]) for g in gradients)
    assert sorted(gradients[0]) == sorted(gradients[1])
    assert torch.cosine_similarity(got, expected, dim=0) > 0.999999


OTHERS: dict[str, PreTrainedConfig] = {
    "mamba": MambaConfig(**OTHER_SIZES, state_size=4),
    "mamba2": Mamba2Config(
        **OTHER_SIZES, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8
    ),
    "bloom": BloomConfig(**OTHER_SIZES, n_head=2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_without_sdpa_train_as_trls(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """`auto` is eager attention and padded rows: padding on the right comes after every token that is scored."""
    folder = saved(tmp_path, OTHERS[name], tokenizer)
    train = {"max_steps": 4, "loss_type": "apo_zero"}
    pair = trainers(folder, tokenizer, train, attention="auto", lora=False)
    for trainer in pair:
        trainer.train()
    for got, expected in zip(*map(figures, pair), strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4), json.dumps([got, expected])


def test_llama_4_scores_what_its_logits_say(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """TRL's DPOTrainer fails on it: the class names another attribute for its base than it has."""
    config = Llama4TextConfig(
        **SIZES,
        intermediate_size_mlp=48,
        num_local_experts=2,
        attention_chunk_size=64,
        router_aux_loss_coef=0.0,
    )
    folder = saved(tmp_path, config, tokenizer)
    rows = random_pairs(4)
    train = {"max_steps": 2, "loss_type": "apo_zero", "logging_steps": 1, "save_strategy": "no"}
    ours = ours_alone(folder, tokenizer, rows, train, attention="auto", lora=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for pair, margin in zip(rows, ours.start_margins(rows), strict=True):
        means = []
        for side in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([pair["prompt_ids"] + pair[side]])
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].log_softmax(-1)
            scored = logps.gather(1, ids[0, 1:, None])[-len(pair[side]) :]
            means.append(float(scored.mean()))
        assert margin == pytest.approx(means[0] - means[1], rel=1e-4, abs=1e-5)
    ours.train()
    assert figures(ours)[0]["loss"] == pytest.approx(1.0, abs=1e-6)


TRLS = ("hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired")
TRLS += ("sigmoid", "ipo", "apo_down", "discopop", "sigmoid_norm")


@pytest.mark.slow
def test_every_loss_of_trl_trains_the_same(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    for loss in TRLS:
        assert loss in LOSSES
        options = {"max_steps": 2, "loss_type": loss, "label_smoothing": 0.1}
        pair = trainers(folder, tokenizer, options)
        for trainer in pair:
            trainer.train()
        for got, expected in zip(*map(figures, pair), strict=True):
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-4), loss


@pytest.mark.parametrize("attention", [ATTENTION, "sdpa"])
@pytest.mark.parametrize(
    "options",
    [
        {"use_weighting": True},
        {"ld_alpha": 0.4},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
        {"f_divergence_type": "js_divergence"},
        {"gradient_accumulation_steps": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_loss_are_trls_in_both_layouts(
    options: dict[str, Any], attention: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    train = {"max_steps": 2, "loss_type": "sigmoid", **options}
    pair = trainers(folder, tokenizer, train, attention=attention, lora=attention == ATTENTION)
    for trainer in pair:
        trainer.train()
    for got, expected in zip(*map(figures, pair), strict=True):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_sigmoid_starts_at_ln_2(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Wrong boundaries of packed pairs show as another first loss (open-instruct had 6 ln 2)."""
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    ours, _ = trainers(folder, tokenizer, {"max_steps": 1, "loss_type": "sigmoid"})
    ours.train()
    assert figures(ours)[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)


@pytest.mark.parametrize("reference", ["copy", "cached"])
def test_full_training_under_autocast_multiplies_as_its_reference_does(
    reference: Reference, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Without autocast the policy would be in float32, and off its reference by a rounding."""
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    train = {"max_steps": 1, "loss_type": "apo_zero", "logging_steps": 1, "bf16": True}
    train |= {"save_strategy": "no"}
    ours = ours_alone(folder, tokenizer, random_pairs(8), train, lora=False, reference=reference)
    types = set()
    ours.model.model.layers[0].mlp.down_proj.register_forward_hook(
        lambda _module, _inputs, output: types.add(output.dtype)
    )
    ours.train()
    entry = next(entry for entry in ours.state.log_history if "loss" in entry)
    assert (entry["loss"], entry["rewards/margins"]) == (1.0, 0.0)
    assert types == {torch.bfloat16}


def test_a_step_of_batches_by_tokens_is_the_mean_over_its_pairs(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Batches of unequal numbers of pairs, accumulated, against one batch of all pairs."""
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    rows = random_pairs(7)
    whole: dict[str, Any] = {"per_device_train_batch_size": 7}
    parts: dict[str, Any] = {"batch_tokens": 60, "gradient_accumulation_steps": 8}
    logs = []
    for options in (whole, parts):
        train = {"max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
        tokens = options.pop("batch_tokens", None)
        trainer = ours_alone(folder, tokenizer, rows, train | options, batch_tokens=tokens)
        if tokens:
            counts = [len(batch["prompt_lengths"]) for batch in trainer.get_train_dataloader()]
            assert sum(counts) == 7 and len(counts) < 8 and len(set(counts)) > 1
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for expected, got in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins"):
            assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


def test_batches_by_tokens_resume_to_the_same_bits(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    rows = random_pairs(9)
    train = {"max_steps": 8, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 6}
    results = []
    for resume in (None, str(folder / "ours" / "checkpoints" / "checkpoint-6")):
        trainer = ours_alone(folder, tokenizer, rows, train, batch_tokens=90)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.epoch > 1
        named = trainer.model.named_parameters()
        results.append({name: p.detach().clone() for name, p in named if p.requires_grad})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
