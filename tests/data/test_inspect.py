"""What inspect prints is what is trained on."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerFast

from dualign.data.inspect import coloured, show
from dualign.data.prepare import prepare_pairs, prepare_sft
from dualign.data.settings import DataConfig, SourceConfig
from dualign.data.template import load_template
from dualign.data.tokens import IGNORE_INDEX

Write = Callable[[list[dict[str, Any]], str], Path]


def test_supervised_and_special_tokens_are_styled(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("<|im_start|>Hé<|im_end|>\n", add_special_tokens=False)["input_ids"]
    labels = [IGNORE_INDEX, *ids[1:-1], IGNORE_INDEX]
    text = coloured(ids, labels, tokenizer)
    assert text.plain == "<|im_start|>Hé<|im_end|>\u21b5\n"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
        ("<|im_start|>", "dim reverse"),
        ("Hé", "green"),
        ("<|im_end|>", "green reverse"),
        ("\u21b5\n", "dim"),
    ]


def test_show_prints_the_table_and_a_sample_of_each_mode(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    turns = [
        {"prompt": "Hi", "completion": "Yo"},
        {"prompt": "Hi", "completion": "<think>w</think>Yo"},
    ]
    pairs = [{"prompt": "Hi", "chosen": "Yo", "rejected": "No"}]
    sft, preference = write_rows(turns, "sft.jsonl"), write_rows(pairs, "pairs.jsonl")
    template = load_template("dualign")
    for made in (
        prepare_sft(
            DataConfig(sources=(SourceConfig(path=str(sft)),)), tokenizer, template, seed=1
        ),
        prepare_pairs(
            DataConfig(sources=(SourceConfig(path=str(preference)),)), tokenizer, template, seed=1
        ),
    ):
        stream = io.StringIO()
        show(made, tokenizer, console=Console(file=stream, width=160))
        printed = stream.getvalue()
        for mode, source in made.groups:
            assert f"{source} ({mode})" in printed
        assert "Yo<|im_end|>" in printed and "supervised" in printed
