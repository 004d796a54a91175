"""Rated answers train as TRL's KTOTrainer trains them, step by step, its KL estimate included."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast, Trainer
from trl import KTOConfig, KTOTrainer

from dualign.attention.function import ATTENTION
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import RatedData
from dualign.models.source import resolve_model
from dualign.preference.config import PreferenceStage
from dualign.preference.rated import MISMATCHED, with_mismatched
from dualign.preference.train import build_trainer
from dualign.training.adapter import AdapterConfig
from tests.preference.test_step import CONFIGS, SIZES, FirstGradient, saved

FIGURES = (
    *("loss", "grad_norm", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected", "entropy"),
)
_END = 1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{number:03}": number for number in range(SIZES["vocab_size"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="w002"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w000", eos_token="w001")


def rated_rows(count: int, desirable: Any = lambda number: number % 3 != 1) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(3)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(2, SIZES["vocab_size"], (length,), generator=draw).tolist()

    return [
        {
            "prompt_ids": ids(3, 25),
            "answer_ids": [*ids(0, 12), _END],
            "desirable": desirable(number),
            "group": number % 2,
        }
        for number in range(count)
    ]


def as_texts(rows: list[dict[str, Any]]) -> Dataset:
    """The rows as TRL takes them, which tokenizes them and turns their answers."""

    def text(ids: list[int]) -> str:
        return " ".join(f"w{number:03}" for number in ids)

    return Dataset.from_list(
        [
            {
                "prompt": text(row["prompt_ids"]),
                "completion": " " + text(row["answer_ids"]),
                "label": row["desirable"],
            }
            for row in rows
        ]
    )


def longest(rows: list[dict[str, Any]]) -> int:
    return max(len(row["prompt_ids"]) + len(row["answer_ids"]) for row in rows)


def ours(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    train: dict[str, Any],
    *,
    lora: bool = True,
    **stage: Any,
) -> Trainer:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
    config = PreferenceStage(
        name="kto",
        model=str(folder),
        data=DataConfig(
            sources=(SourceConfig(path="rated.jsonl"),), packing="none", max_tokens=longest(rows)
        ),
        lora=AdapterConfig(r=4) if lora else None,
        train={"gradient_checkpointing": False, "loss_type": "kto", **settings, **train},
        **stage,
    )
    assert not config.problems() and not config.unused()
    data = RatedData(
        train=Dataset.from_list(rows),
        validation=None,
        groups=(("think", "rated"), ("no_think", "rated")),
        rows={},
        sources=(),
    )
    source = resolve_model(config.model)
    return build_trainer(config, source, data, tokenizer, folder / "ours", seed=5)


def theirs(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    train: dict[str, Any],
    *,
    lora: bool = True,
) -> KTOTrainer:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
    settings |= {"gradient_checkpointing": False, "seed": 5, "data_seed": 5}
    settings |= {"max_length": longest(rows)}  # of mismatched answers, some are longer
    settings |= {"report_to": "none", "bf16": False, "output_dir": str(folder / "theirs")}
    peft = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules="all-linear")
    return KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=KTOConfig(**settings, **train),
        train_dataset=as_texts(rows),
        processing_class=tokenizer,
        peft_config=peft if lora else None,
    )


def steps_of(trainer: Trainer) -> list[dict[str, float]]:
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: float(entry[name]) for name in FIGURES if name in entry} for entry in log]


WEIGHTS = {"desirable_weight": 0.7, "undesirable_weight": 1.6}


@pytest.mark.parametrize(
    ("name", "options", "stage"),
    [
        ("llama", {"loss_type": "kto"}, {}),
        ("smollm3", {"loss_type": "kto", **WEIGHTS}, {"lora": False}),
        ("llama", {"loss_type": "apo_zero_unpaired", **WEIGHTS}, {}),
        ("gemma3", {"loss_type": "apo_zero_unpaired"}, {"lora": False}),
        ("llama", {"loss_type": "kto", **WEIGHTS}, {"attn_implementation": "sdpa"}),
        ("llama", {"loss_type": "kto", "gradient_accumulation_steps": 2}, {"reference": "cached"}),
    ],
    ids=["kto", "kto-full-weights", "apo-weights", "apo-full", "padded", "accumulated-cached"],
)
def test_steps_are_trls(
    name: str,
    options: dict[str, Any],
    stage: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, CONFIGS[name], tokenizer)
    train = {"max_steps": 6, "beta": 0.3, "per_device_train_batch_size": 3, **options}
    train["train_sampling_strategy"] = "sequential"
    rows, lora = rated_rows(14), stage.get("lora", True)
    pair = (
        ours(folder, tokenizer, rows, train, **stage),
        theirs(folder, tokenizer, rows, train, lora=lora),
    )
    gradients = []
    for trainer in pair:
        trainer.add_callback(first := FirstGradient())
        trainer.train()
        gradients.append(first.gradient)
    got, expected = (torch.cat([g[k].reshape(-1) for k in sorted(g)]) for g in gradients)
    assert torch.cosine_similarity(got, expected, dim=0) > 0.999999
    logs = [steps_of(trainer) for trainer in pair]
    weighed = 1.0 if "desirable_weight" not in options else (0.7 + 1.6 + 0.7) / 3
    assert logs[0][0]["loss"] == pytest.approx(0.5 * weighed, abs=1e-6)
    if options["loss_type"] == "kto":
        assert any(step["kl"] > 0.01 for step in logs[0]), "the estimate is seen"
    for ours_, theirs_ in zip(*logs, strict=True):
        # TRL's other figures of two batches are the mean of their means; ours are of all their answers.
        kept = ("loss", "grad_norm", "kl") if "gradient_accumulation_steps" in options else FIGURES
        ours_, theirs_ = ({k: v for k, v in step.items() if k in kept} for step in (ours_, theirs_))
        if options["loss_type"] != "kto":
            assert theirs_.pop("kl") == 0
        assert set(ours_) == set(theirs_)
        assert ours_["loss"] == pytest.approx(theirs_["loss"], rel=1e-5)
        assert ours_ == pytest.approx(theirs_, rel=1e-4, abs=1e-4), json.dumps([ours_, theirs_])


def test_mismatched_answers_are_those_of_the_batch_turned_by_one() -> None:
    rows = Dataset.from_list([{"prompt_ids": [0], "answer_ids": [number]} for number in range(8)])

    def turned(count: int, batch_rows: int) -> list[int]:
        mismatched = with_mismatched(rows.select(range(count)), batch_rows, 2)[MISMATCHED]
        return [ids[0] for ids in mismatched]

    assert turned(8, 3) == [2, 0, 1, 5, 3, 4, 7, 6]
    assert turned(6, 3) == [2, 0, 1, 5, 3, 4]
    assert turned(7, 3) == [2, 0, 1, 5, 3, 4, 5], "a last batch of one row takes its neighbor's"
    assert turned(5, 8) == [4, 0, 1, 2, 3]
    assert turned(1, 2) == [0]


def test_mismatched_answers_are_cut_to_the_longest_row(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A model of learned positions has none for more."""
    lengths = [(8, 2), (1, 9), (3, 4), (9, 1)]
    rows = [
        {"prompt_ids": [5] * prompt, "answer_ids": list(range(answer, 0, -1)), "group": 0}
        | {"desirable": place < 2}
        for place, (prompt, answer) in enumerate(lengths)
    ]
    mismatched = with_mismatched(Dataset.from_list(rows), 3, 10)[MISMATCHED]
    assert list(mismatched) == [[4, 3], [2, 1], [9, 8, 7, 6, 5, 4, 3], [4]]
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 10}
    tokens = {name: SIZES[name] for name in ("vocab_size", "pad_token_id", "eos_token_id")}
    folder = saved(tmp_path, GPT2Config(**sizes, **tokens, bos_token_id=1), tokenizer)
    train = {"max_steps": 1, "per_device_train_batch_size": 4}
    trainer = ours(folder, tokenizer, rows, train, lora=False)
    trainer.train()
    assert steps_of(trainer)[0]["loss"] == pytest.approx(0.5)


def test_batches_of_one_verdict_train(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The figures of the side that isn't in a batch are left out of its log."""
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    rows = rated_rows(8, lambda number: number < 4)
    trainer = ours(folder, tokenizer, rows, {"max_steps": 2, "per_device_train_batch_size": 4})
    trainer.train()
    first, second = steps_of(trainer)
    assert "rewards/chosen" in first and "rewards/rejected" not in first
    assert "rewards/rejected" in second and "rewards/chosen" not in second


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_rated_answers_resume_to_the_same_bits(
    loss: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    train = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "loss_type": loss}
    train["per_device_train_batch_size"] = 3
    results = []
    for resume in (None, str(folder / "ours" / "checkpoints" / "checkpoint-4")):
        trainer = ours(folder, tokenizer, rated_rows(8), train)
        trainer.train(resume_from_checkpoint=resume)
        named = trainer.model.named_parameters()
        results.append({name: p.detach().clone() for name, p in named if p.requires_grad})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_step_of_batches_by_tokens_is_the_mean_over_its_answers(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = saved(tmp_path, CONFIGS["llama"], tokenizer)
    train: dict[str, Any] = {"max_steps": 2, "loss_type": "apo_zero_unpaired"}
    whole = ours(folder, tokenizer, rated_rows(7), {**train, "per_device_train_batch_size": 7})
    parts = ours(
        folder,
        tokenizer,
        rated_rows(7),
        {**train, "gradient_accumulation_steps": 8},
        batch_tokens=45,
    )
    assert 1 < len(parts.get_train_dataloader()) < 7
    for trainer in (whole, parts):
        trainer.train()
    for got, expected in zip(steps_of(parts), steps_of(whole), strict=True):
        for name in ("loss", "grad_norm", "rewards/margins"):
            assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


def test_both_layouts_are_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = saved(tmp_path, CONFIGS["qwen3"], tokenizer)
    logs = []
    for attention in (ATTENTION, "sdpa"):
        train = {"max_steps": 3, "per_device_train_batch_size": 4}
        trainer = ours(folder, tokenizer, rated_rows(9), train, attn_implementation=attention)
        trainer.train()
        logs.append(steps_of(trainer))
    for got, expected in zip(*logs, strict=True):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)
