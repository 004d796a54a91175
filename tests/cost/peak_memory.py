"""Trains small models for two steps through the trainers and prints their peak memory.

    python tests/cost/peak_memory.py "LoRA DPO"

Prints {"case", "estimated", "measured", "whole_process"} in bytes, a line per case (all without arguments). `measured` is the peak
resident memory above what the process held just before, when a model a few numbers wide had been trained and so all
libraries were in use; the peak is reset through /proc.

glibc's malloc raises by itself the size from which a block is returned to the system when it is freed, and so tensors
leave holes in the heap: the same training then peaks 2 to 70 % higher, by chance of sizes. `ENVIRONMENT` fixes that
size (and makes training slower), so that what is measured is what the training asked for. It has to be set before a process starts; `main` starts
this script again if it isn't.
"""

import gc
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, SFTConfig

from dualign.attention.function import ATTENTION
from dualign.cost.lora_shape import LoraShape
from dualign.cost.memory import estimate
from dualign.cost.model_shape import ModelShape
from dualign.cost.training_shape import TrainingShape
from dualign.data.tokens.collate import PackedCollator
from dualign.models.pairs import PairCollator
from dualign.preference.losses.settings import LossSettings
from dualign.preference.trainer import DualModeDPOTrainer
from dualign.sft.trainer import DualModeSFTTrainer
from dualign.training.tiled_mlp import tile_mlps

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}
WORDS = 100
DOCUMENT = 1024
ROWS = 4
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MICRO = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": WORDS,
}
CASES: dict[str, tuple[dict[str, Any], TrainingShape]] = {
    "full SFT": (
        {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 6,
            "vocab_size": 16384,
        }
        | {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
        TrainingShape(
            micro_batch=2, max_tokens=192, attention="dualign", gradient_checkpointing=False
        ),
    ),
    "LoRA SFT, checkpointed": (
        {
            "model_type": "qwen3",
            "hidden_size": 640,
            "intermediate_size": 1920,
            "num_hidden_layers": 8,
            "vocab_size": 12000,
        }
        | {
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
        TrainingShape(micro_batch=1, max_tokens=512, attention="dualign", lora=LoraShape(r=16)),
    ),
    "LoRA DPO": (
        {
            "model_type": "smollm3",
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
        }
        | {
            "vocab_size": 49152,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        TrainingShape(
            pairs=True,
            micro_batch=2,
            max_tokens=160,
            tokens_per_micro_batch=80 + 80 + 64,
            attention="dualign",
            gradient_checkpointing=False,
            lora=LoraShape(r=16),
            reference="adapter",
        ),
    ),
    "full SFT, accumulated": (
        {
            "model_type": "qwen2",
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
        }
        | {
            "vocab_size": 12000,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
        },
        TrainingShape(micro_batch=1, max_tokens=96, attention="dualign", gradient_accumulation=2),
    ),
    "full SFT, short rows, optimiser not fused": (
        {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
        }
        | {
            "vocab_size": 32000,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
        TrainingShape(micro_batch=1, max_tokens=32, attention="dualign", optimizer="adamw_torch"),
    ),
    "full DPO with a frozen copy": (
        {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
        }
        | {
            "vocab_size": 8192,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
        TrainingShape(
            pairs=True,
            micro_batch=2,
            max_tokens=64,
            tokens_per_micro_batch=32 + 32 + 16,
            attention="dualign",
            gradient_checkpointing=False,
            reference="copy",
            optimizer="sgd",
        ),
    ),
}

# benchmarks/README.md has their figures.
_LONG = {
    "model_type": "smollm3",
    "hidden_size": 256,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}
CASES |= {
    f"LoRA SFT, {tokens // 1024}k tokens{', tiled' * tiled}": (
        _LONG,
        TrainingShape(
            micro_batch=1,
            max_tokens=tokens,
            attention="dualign",
            tiled_mlp=tiled,
            lora=LoraShape(r=16),
            optimizer="sgd",
        ),
    )
    for tokens in (4096, 16384, 65536)
    for tiled in (False, True)
}


def memory(key: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def sft_rows(training: TrainingShape) -> Dataset:
    """Rows of documents of `DOCUMENT` tokens, or of two."""
    tokens = training.max_tokens
    ids = [3 + n % (WORDS - 3) for n in range(tokens)]
    length = min(DOCUMENT, tokens // 2)
    lengths = [length] * (tokens // length)
    row = {
        "input_ids": ids,
        "labels": ids,
        "seq_lengths": lengths,
        "doc_groups": [0] * len(lengths),
    }
    return Dataset.from_list([row] * ROWS)


def pairs(training: TrainingShape) -> Dataset:
    """Pairs with a prompt of half of `max_tokens`, and answers of the other half and 16 tokens less."""
    prompt, answer = [7] * (training.max_tokens // 2), [9] * (training.max_tokens // 2)
    row = {"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": answer[:-16], "group": 0}
    return Dataset.from_list([row] * ROWS)


def arguments(training: TrainingShape, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        # The optimizer's states are there in the second step.
        "max_steps": 1 if training.optimizer == "sgd" else 2,
        "per_device_train_batch_size": training.micro_batch // (2 if training.pairs else 1),
        "gradient_accumulation_steps": training.gradient_accumulation,
        "gradient_checkpointing": training.gradient_checkpointing,
        "bf16": False,
        "use_cpu": True,
        "optim": training.optimizer,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, WORDS)}
    split = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=split, pad_token="<pad>", eos_token="</s>")


def train(config: dict[str, Any], training: TrainingShape, folder: str) -> None:
    settings = AutoConfig.for_model(**config, **_IDS)
    lora = LoraConfig(r=training.lora.r, target_modules="all-linear") if training.lora else None
    common = {
        "model": AutoModelForCausalLM.from_config(settings),
        "processing_class": tokenizer(),
        "peft_config": lora,
    }
    frozen = AutoModelForCausalLM.from_config(settings) if training.reference == "copy" else None
    if training.tiled_mlp:
        tile_mlps(common["model"])
    for model in filter(None, (common["model"], frozen)):
        model.set_attn_implementation(ATTENTION)
    given = arguments(training, folder)
    if not training.pairs:
        options = SFTConfig(
            **given, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False
        )
        DualModeSFTTrainer(
            **common,
            args=options,
            train_dataset=sft_rows(training),
            data_collator=PackedCollator(by_document=True),
            groups=(("no_think", "rows"),),
        ).train()
    else:
        DualModeDPOTrainer(
            **common,
            ref_model=frozen,
            args=DPOConfig(**given, max_length=None, remove_unused_columns=False),
            train_dataset=pairs(training),
            data_collator=PairCollator(layout="shared"),
            groups=(("no_think", "pairs"),),
            losses=LossSettings(),
        ).train()


def measure(config: dict[str, Any], training: TrainingShape) -> dict[str, int]:
    """Bytes above what a process holds that has trained before, and in all, beside the estimate of the former."""
    found = estimate(ModelShape.from_config(config), training)
    with tempfile.TemporaryDirectory() as folder:
        train({**config, **_MICRO}, replace(training, max_tokens=40), folder)
        gc.collect()
        start = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        train(config, training, folder)
    peak = memory("VmHWM")
    return {
        "estimated": found.total - found.framework,
        "measured": peak - start,
        "whole_process": peak,
    }


def main(cases: list[str]) -> int:
    if ENVIRONMENT.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    failed = 0
    for case in cases:
        # A process each, forked when the libraries are loaded: importing them takes longer than training.
        if child := os.fork():
            failed |= os.waitpid(child, 0)[1]
            continue
        print(json.dumps({"case": case, **measure(*CASES[case])}), flush=True)
        os._exit(0)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(CASES)))
