"""The SFT rows of `benchmarks.training`: packed rows of two modes, on two sides."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-5
_IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How the tokens of a step lie in rows and documents."""

    rows: int = 1
    """rows of a batch"""
    batches: int = 1
    """batches of a step"""
    tokens: int = 1024
    """of a row"""
    document: int | None = None
    """tokens of each document; None: conversations of both modes, 50 to 480 tokens"""
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTRow:
    """One line of the table: two ways to train on the same tokens, and the least ratio of their speed."""

    text: str
    first: tuple[str, Packing]
    """whose trainer it is (trl or dualign), and its rows"""
    second: tuple[str, Packing]
    speed_bar: float
    memory_bar: float | None = None
    unit: str = "tokens"

    @property
    def sides(self) -> tuple[str, str]:
        return ("first", "second") if self.first[0] == self.second[0] else ("trl", "dualign")

    def units(self, side: str, steps: int) -> int:
        """Return the tokens of some steps."""
        packing = self._side(side)[1]
        return packing.rows * packing.batches * packing.tokens * steps

    def trainer(self, side: str, model: Path, vocabulary: int, steps: int, work: Path) -> Any:
        """Return the trainer of a side, for so many steps."""
        whose, packing = self._side(side)
        count = packing.rows * packing.batches * steps
        settings = {
            "per_device_train_batch_size": packing.rows,
            "gradient_accumulation_steps": packing.batches,
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "logging_steps": 10,
            "gradient_checkpointing": packing.checkpointing,
            "use_cpu": True,
            "bf16": False,
            "seed": 0,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        return _TRAINERS[whose](model, packed_rows(packing, count, vocabulary), settings, work)

    def shrunk(self, factor: int) -> "SFTRow":
        """Return the row with fewer tokens, but more than a prompt has."""
        factor //= 4
        sides = {
            name: (whose, _shrunk(packing, factor))
            for name, (whose, packing) in (("first", self.first), ("second", self.second))
        }
        return SFTRow(text=self.text, speed_bar=self.speed_bar, **sides)

    def _side(self, side: str) -> tuple[str, Packing]:
        return self.first if side in ("trl", "first") else self.second


def _shrunk(packing: Packing, factor: int) -> Packing:
    return Packing(
        rows=packing.rows,
        batches=packing.batches,
        tokens=packing.tokens // factor,
        document=packing.document and packing.document // factor,
        checkpointing=packing.checkpointing,
    )


SFT_ROWS: Mapping[str, SFTRow] = {
    "sft-packed": SFTRow(
        text="SFT, LoRA r16, packed 1,024, two modes, 1 row a batch",
        first=("trl", Packing()),
        second=("dualign", Packing()),
        speed_bar=1.4,
    ),
    "sft-batch": SFTRow(
        text="SFT, 1 row of 2,048 eight times, and 8 rows in a batch",
        first=("dualign", Packing(batches=8, tokens=2048, checkpointing=True)),
        second=("dualign", Packing(rows=8, tokens=2048, checkpointing=True)),
        speed_bar=0.95,
    ),
    "sft-documents": SFTRow(
        text="SFT, 2,048 tokens: 1 document, and 8",
        first=("dualign", Packing(tokens=2048, document=2048)),
        second=("dualign", Packing(tokens=2048, document=256)),
        speed_bar=1 / 1.05,
    ),
    "sft-tokens": SFTRow(
        text="SFT, documents of 256: 1,024 tokens a batch, and 2,048",
        first=("dualign", Packing(document=256)),
        second=("dualign", Packing(tokens=2048, document=256)),
        speed_bar=2 / 2.1,
    ),
}


def packed_rows(packing: Packing, count: int, vocabulary: int) -> list[dict[str, Any]]:
    """Return rows of random tokens; every side gets the same for the same packing."""
    draw = random.Random(0)
    return [_row(packing, draw, vocabulary) for _ in range(count)]


def _row(packing: Packing, draw: random.Random, vocabulary: int) -> dict[str, Any]:
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "seq_lengths": [], "doc_groups": []}
    while (left := packing.tokens - len(row["input_ids"])) > 0:
        mode = draw.randrange(2)
        prompt, answer = draw.randrange(20, 80), draw.randrange(*((30, 120), (150, 400))[mode])
        length = min(left, packing.document or prompt + answer)
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        row["input_ids"] += ids
        row["labels"] += [_IGNORED] * min(prompt, length) + ids[prompt:]
        row["seq_lengths"].append(length)
        row["doc_groups"].append(mode)
    return row


def _trl(model: Path, rows: list[dict[str, Any]], settings: dict[str, Any], work: Path) -> Any:
    """Return TRL's trainer on rows that are packed."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    names = ("input_ids", "labels", "seq_lengths")
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        args=SFTConfig(
            **settings,
            output_dir=str(work),
            max_length=None,
            packing=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{name: row[name] for name in names} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"
        ),
    )


def _dualign(model: Path, rows: list[dict[str, Any]], settings: dict[str, Any], work: Path) -> Any:
    """Return the trainer of an SFT stage on the same rows."""
    from datasets import Dataset

    from dualign.data.config import DataConfig, SourceConfig
    from dualign.data.prepare import SFTData
    from dualign.models.source import resolve_model
    from dualign.models.tokenizer import load_tokenizer
    from dualign.sft.config import SFTStage
    from dualign.sft.train import build_trainer
    from dualign.training.adapter import AdapterConfig

    stage = SFTStage(
        name="sft",
        model=str(model),
        data=DataConfig(sources=(SourceConfig(path="rows.jsonl"),)),
        lora=AdapterConfig(r=16),
        train=settings,
    )
    source = resolve_model(stage.model)
    tokenizer, _ = load_tokenizer(source, stage.template, {})
    data = SFTData(
        train=Dataset.from_list(rows),
        validation=None,
        groups=(("no_think", "rows"), ("think", "rows")),
        rows={},
        sources=(),
        fill=1.0,
    )
    return build_trainer(stage, source, data, tokenizer, work, seed=0)


_TRAINERS: Mapping[str, Callable[..., Any]] = {"trl": _trl, "dualign": _dualign}
