"""What inspect prints is what is trained on."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.data.text.template import load_template
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.inspect.terminal import colored, lengths_of, runs_of, show, show_counts

Write = Callable[[list[dict[str, Any]], str], Path]


def test_supervised_and_special_tokens_are_styled(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("<|im_start|>Hé<|im_end|>\n", add_special_tokens=False)["input_ids"]
    labels = [IGNORE_INDEX, *ids[1:-1], IGNORE_INDEX]
    text = colored(ids, labels, tokenizer)
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
            DataRequest(
                DataConfig(sources=(SourceConfig(path=str(sft)),)), tokenizer, template, seed=1
            )
        ),
        prepare_pairs(
            DataRequest(
                DataConfig(sources=(SourceConfig(path=str(preference)),)),
                tokenizer,
                template,
                seed=1,
            )
        ),
    ):
        stream = io.StringIO()
        show(made, tokenizer, console=Console(file=stream, width=160))
        printed = stream.getvalue()
        for mode, source in made.groups:
            assert f"{source} ({mode})" in printed
        assert "Yo<|im_end|>" in printed and "supervised" in printed


def test_runs_put_together_are_the_text_and_supervised_ones_the_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = tokenizer("<|im_start|>a\nHé<|im_end|>\n", add_special_tokens=False)["input_ids"]
    split = tokenizer("<|im_start|>a\n", add_special_tokens=False)["input_ids"]
    labels = [IGNORE_INDEX] * len(split) + ids[len(split) : -1] + [IGNORE_INDEX]
    runs = list(runs_of(ids, labels, tokenizer))
    assert "".join(run.text for run in runs) == tokenizer.decode(ids)
    assert "".join(run.text for run in runs if run.supervised) == "Hé<|im_end|>"
    assert [run.text for run in runs if run.special] == ["<|im_start|>", "<|im_end|>"]


def test_lengths_are_those_of_the_documents(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    turns = [{"prompt": "Hi", "completion": "Yo" * n} for n in (1, 50)]
    pairs = [{"prompt": "Hi", "chosen": "Yo", "rejected": "No"}]
    template = load_template("dualign")
    source = SourceConfig(path=str(write_rows(turns, "sft.jsonl")))
    packed = prepare_sft(DataRequest(DataConfig(sources=(source,)), tokenizer, template, seed=1))
    (lengths,) = lengths_of(packed).values()
    assert sorted(lengths)[1] > sorted(lengths)[0]
    assert sum(lengths) == packed.rows["tokens"]
    source = SourceConfig(path=str(write_rows(pairs, "pairs.jsonl")))
    both = prepare_pairs(DataRequest(DataConfig(sources=(source,)), tokenizer, template, seed=1))
    assert lengths_of(both) == {("no_think", "pairs"): [both.rows["tokens"]]}


def printed_counts(width: int, **more: object) -> str:
    counts = {"in": 123_456, "kept": 123_450, "validation": 0, "repeats": 0, "examples": 123_450}
    counts |= {"tokens": 98_765_432, "supervised_tokens": 87_654_321, "repaired": {}}
    counts |= {"dropped": {"too_long": 6}, **more}
    entry = {**counts, "source": "everyday", "mode": "no_think"}
    entry |= {"share": 1.0, "mean_tokens": 800.0, "max_tokens": 2048}
    stream = io.StringIO()
    show_counts({**counts, "by": [entry]}, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_of_rows_fits_a_terminal_and_leaves_out_what_is_empty() -> None:
    printed = printed_counts(100)
    assert "98,765,432" in printed and "…" not in printed
    assert re.search(r"everyday +no_think +dropped +too_long +6\b", printed)
    assert "held out" not in printed and "repaired" not in printed


def test_no_word_is_broken_at_80_columns() -> None:
    more = {"validation": 12_345, "repeats": 123_456, "repaired": {"strip_thinking": 123}}
    reasons = {"empty_assistant_answer_of_a_long_name": 123_456, "unknown_shape": 3}
    printed = printed_counts(80, **more, dropped=reasons)
    assert max(map(len, printed.splitlines())) <= 80
    words = ["everyday", "no_think", "dropped", "repaired", "held out", "repeats", "supervised"]
    words += ["98,765,432", "87,654,321", "2,048", "strip_thinking", *reasons]
    assert [word for word in words if word not in printed] == []


def test_lengths_of_many_sizes_stand_below_each_other(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    turns = [{"prompt": "Hi", "completion": "yes " * 2**power} for power in range(13)]
    source = SourceConfig(path=str(write_rows(turns, "everyday_conversations.jsonl")))
    data = DataConfig(sources=(source,), max_tokens=20_000)
    prepared = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=1))
    stream = io.StringIO()
    show(prepared, tokenizer, samples=0, console=Console(file=stream, width=80))
    printed = stream.getvalue()
    powers = range(5, 14)
    assert [power for power in powers if f" {2**power:,}" not in printed] == []
    assert printed.count("tokens of a row, up to") > 1
    assert "\u2026" not in printed


def test_a_pipe_gets_marks_around_what_is_supervised(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    answer = "wonderful " * 30  # longer than a line: a pipe's reader may search for it
    source = SourceConfig(
        path=str(write_rows([{"prompt": "Hi", "completion": answer}], "sft.jsonl"))
    )
    prepared = prepare_sft(
        DataRequest(DataConfig(sources=(source,)), tokenizer, load_template("dualign"), seed=1)
    )
    stream = io.StringIO()
    show(prepared, tokenizer, console=Console(file=stream, width=80))
    printed = stream.getvalue()
    opening, closing = "\u27e6", "\u27e7"
    assert f"{opening}...{closing} marks what is supervised" in printed
    assert f"{opening}{answer.strip()}<|im_end|>" in printed
    assert printed.count(closing) == 2
    stream = io.StringIO()
    show(prepared, tokenizer, console=Console(file=stream, width=80, force_terminal=True))
    assert "marks what is supervised" not in stream.getvalue()
