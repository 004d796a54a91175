"""From files to packed rows: the account adds up, the seed decides the order, and nothing leaks into validation."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dualign.data.cache import cache_key
from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.conversation import RowType
from dualign.data.faults import RowError
from dualign.data.mix.row_table import RowStats, summarize_rows
from dualign.data.prepare import DataRequest, SFTData, prepare, prepare_pairs, prepare_sft
from dualign.data.seeds import held_out, repeated, rng, weighted_rows
from dualign.data.text.template import load_template
from dualign.data.tokens.encoding import ExampleEncoder
from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.errors import DataError, TemplateError

Write = Callable[[list[dict[str, Any]], str], Path]


def chat(number: int, *, think: bool, **more: Any) -> dict[str, Any]:
    trace = f"<think>\ncount {number} apples\n</think>\n\n" if think else ""
    turns = [
        {"role": "user", "content": f"How many? {number}"},
        {"role": "assistant", "content": f"{trace}There are {number}."},
    ]
    return {"messages": turns, **more}


def mixed(count: int) -> list[dict[str, Any]]:
    return [chat(number, think=number % 3 == 0) for number in range(count)]


def check_account(rows: dict[str, Any]) -> None:
    """The schema of run.json: in = kept + dropped, in total and for each source and mode."""
    for entry in (rows, *rows["by"]):
        assert entry["in"] == entry["kept"] + sum(entry["dropped"].values())
        assert entry["examples"] == entry["kept"] - entry["validation"] + entry["repeats"]
    for name in ("in", "kept", "validation", "repeats", "examples", "tokens", "supervised_tokens"):
        assert rows[name] == sum(entry[name] for entry in rows["by"])


def documents(
    prepared: SFTData, part: str = "train"
) -> list[tuple[tuple[str, str], tuple[int, ...], int]]:
    """(group, ids, supervised tokens) of each document, taken out of the packed rows again."""
    found = []
    for row in getattr(prepared, part):
        ends = np.cumsum(row["seq_lengths"]).tolist()
        for group, start, stop in zip(row["doc_groups"], [0, *ends], ends, strict=False):
            labels = row["labels"][start:stop]
            counted = sum(label != IGNORE_INDEX for label in labels)
            found.append((prepared.groups[group], tuple(row["input_ids"][start:stop]), counted))
    return found


def test_packed_rows_hold_what_the_account_says(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows(mixed(60), "a.jsonl")
    base = write_rows(mixed(40), "b.jsonl").parent
    data = DataConfig(
        sources=(
            SourceConfig(path="a.jsonl", weight=0.5),
            SourceConfig(path="b.jsonl", weight=2.5),
        ),
        validation_rows=6,
        max_tokens=128,
    )
    made = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=3, base=base))
    check_account(made.rows)
    assert made.rows["dropped"] == {"weight": 30}
    assert (made.rows["in"], made.rows["kept"], made.rows["validation"]) == (100, 70, 6)
    found = documents(made)
    for entry in made.rows["by"]:
        mine = [item for item in found if item[0] == (entry["mode"], entry["source"])]
        assert len(mine) == entry["examples"]
        assert sum(len(ids) for _, ids, _ in mine) == entry["tokens"]
        assert sum(counted for _, _, counted in mine) == entry["supervised_tokens"]
        assert max((len(ids) for _, ids, _ in mine), default=0) == entry["max_tokens"]
    for (mode, _), ids, _ in found:
        text = tokenizer.decode(ids)
        assert f"/{mode}<|im_end|>" in text
        assert ("count" in text) == (mode == "think")
    assert made.fill == sum(len(ids) for _, ids, _ in found) / (128 * len(made.train))
    assert [entry["rows"] for entry in made.sources] == [60, 40]


def test_repeats_never_reach_over_into_validation(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(mixed(30), "a.jsonl")
    data = DataConfig(
        sources=(SourceConfig(path=str(path), weight=2.5),), validation_rows=10, max_tokens=128
    )
    made = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=0))
    train = Counter(ids for _, ids, _ in documents(made))
    validation = Counter(ids for _, ids, _ in documents(made, "validation"))
    assert not set(train) & set(validation)
    assert sorted(validation.values()) == [1] * 10
    assert sorted(train.values()) == [2] * 10 + [3] * 10


def test_the_order_depends_on_the_seed_alone(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(mixed(50), "a.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=128, validation_rows=5)

    def rows(seed: int) -> list[list[int]]:
        made = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=seed))
        return list(made.train["input_ids"])

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


@pytest.mark.parametrize("row_type", ["conversation", "pair", "rated"])
def test_any_number_of_processes_prepares_the_same(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, row_type: RowType
) -> None:
    """Rows, their order, account and key."""
    rows = mixed(70)
    if row_type == "pair":
        rows = [
            {"prompt": f"Hi {number % 60}", "chosen": "Yo", "rejected": f"No {'x' * number}"}
            for number in range(70)
        ]
    if row_type == "rated":
        rows = [row | {"label": number % 4 == 0} for number, row in enumerate(rows)]
    rows += rows[:5]
    data = DataConfig(
        sources=(SourceConfig(path=str(write_rows(rows, "a.jsonl"))),),
        max_tokens=128,
        too_long="drop",
        dedup=DedupConfig(),
        validation_rows=6,
        cache=False,
    )
    of_one, of_three = (
        DataRequest(replace(data, num_proc=count), tokenizer, load_template("dualign"), seed=1)
        for count in (1, 3)
    )
    alone, together = prepare(of_one, row_type), prepare(of_three, row_type)
    assert alone.rows["dropped"]["duplicate"] >= 5
    for part in ("train", "validation"):
        ours, theirs = getattr(alone, part), getattr(together, part)
        assert ours.features == theirs.features
        assert ours.to_list() == theirs.to_list()
    for name in ("rows", "groups", "sources"):
        assert getattr(alone, name) == getattr(together, name)
    keys = {
        cache_key("a", replace(of, data=replace(of.data, cache=True))) for of in (of_one, of_three)
    }
    assert len(keys) == 1


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
def test_every_packing_trains_on_every_document(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, packing: Any
) -> None:
    path = write_rows(mixed(20), "a.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=90, packing=packing)
    made = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=1))
    check_account(made.rows)
    tokens = sum(sum(row["seq_lengths"]) for row in made.train)
    assert tokens == made.rows["tokens"]
    assert all(len(row["input_ids"]) <= 90 for row in made.train)
    assert all(len(row["input_ids"]) == len(row["labels"]) for row in made.train)


def test_wrapped_rows_take_documents_of_any_length(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    paths = (
        write_rows([{"text": "apple " * 100}], "a.jsonl"),
        write_rows([chat(1, think=True)], "b.jsonl"),
    )
    data = DataConfig(
        sources=tuple(SourceConfig(path=str(path)) for path in paths),
        max_tokens=64,
        packing="wrapped",
        supervise="all",
    )
    template = load_template("chatml", tokenizer=tokenizer)
    made = prepare_sft(DataRequest(data, tokenizer, template, seed=1))
    assert made.rows["dropped"] == {}
    joined = [token for row in made.train for token in row["input_ids"]]
    assert "apple " * 100 + "<|end_of_text|>" in tokenizer.decode(joined)
    assert made.rows["supervised_tokens"] == made.rows["tokens"] == len(joined)


def test_contradictions_stop_the_run_or_are_counted(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        *mixed(6),
        chat(6, think=True, mode="no_think"),
        chat(7, think=False, mode="think"),
        {"messages": [{"role": "user", "content": "Hi"}]},
        chat(8, think=False)
        | {"messages": [{"role": "system", "content": "x" * 900}, *mixed(2)[1]["messages"]]},
    ]
    path = write_rows(rows, "a.jsonl")
    template = load_template("dualign")
    strict = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=256)
    with pytest.raises(RowError, match=r"a, row 6: .*\[no_think_with_trace\]"):
        prepare_sft(DataRequest(strict, tokenizer, template, seed=1))
    lenient = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=256, conflicts="drop")
    made = prepare_sft(DataRequest(lenient, tokenizer, template, seed=1))
    check_account(made.rows)
    assert made.rows["dropped"] == {
        "no_answer": 1,
        "no_think_with_trace": 1,
        "think_without_trace": 1,
        "too_long": 1,
    }
    by_mode = {entry["mode"]: entry for entry in made.rows["by"]}
    assert by_mode["think"]["dropped"] == {"think_without_trace": 1}
    with pytest.raises(RowError, match="too_long"):
        short = DataConfig(
            sources=(SourceConfig(path=str(path)),),
            max_tokens=256,
            conflicts="drop",
            too_long="error",
        )
        prepare_sft(DataRequest(short, tokenizer, template, seed=1))


def test_a_fault_names_the_row_of_the_file_when_a_weight_drew_it(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [chat(number, think=False) for number in range(12)]
    rows[7] = chat(7, think=True, mode="no_think")
    path = write_rows(rows, "a.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path), weight=0.75),), max_tokens=256)
    messages = []
    for seed in range(8):
        try:
            prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=seed))
        except RowError as error:
            messages.append(str(error))
    assert 1 < len(messages) < 8
    assert all(message.startswith("a, row 7: ") for message in messages)


def test_rows_that_a_template_cannot_prove_stop_the_run_or_are_counted(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lossy = tmp_path / "lossy.jinja"
    lossy.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    path = write_rows(mixed(9), "a.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=256)
    with pytest.raises(TemplateError, match="leaves out the trace"):
        prepare_sft(DataRequest(data, tokenizer, load_template(str(lossy)), seed=1))
    lenient = DataConfig(sources=data.sources, max_tokens=256, conflicts="drop")
    made = prepare_sft(DataRequest(lenient, tokenizer, load_template(str(lossy)), seed=1))
    assert made.rows["dropped"] == {"template": 3}


def test_no_rows_left_and_too_much_validation_are_errors(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(mixed(4), "a.jsonl")
    template = load_template("dualign")
    with pytest.raises(DataError, match=r"no row is left to train on\. Left out: too_long: 4"):
        prepare_sft(
            DataRequest(
                DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=8),
                tokenizer,
                template,
                seed=1,
            )
        )
    with pytest.raises(DataError, match="only 4 rows were kept"):
        data = DataConfig(sources=(SourceConfig(path=str(path)),), validation_rows=4)
        prepare_sft(DataRequest(data, tokenizer, template, seed=1))
    with pytest.raises(DataError, match="sources with the same name: a"):
        twice = DataConfig(sources=(SourceConfig(path=str(path)),) * 2)
        prepare_sft(DataRequest(twice, tokenizer, template, seed=1))
    with pytest.raises(DataError, match="leaves none of 4 rows"):
        little = DataConfig(sources=(SourceConfig(path=str(path), weight=0.01),))
        prepare_sft(DataRequest(little, tokenizer, template, seed=1))


def test_template_kwargs_reach_every_row(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows(mixed(3), "a.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path)),), packing="none")
    given = {"date": "2025-07-01"}
    made = prepare_sft(
        DataRequest(data, tokenizer, load_template("dualign").with_kwargs(given), seed=1)
    )
    assert all("Today: 2025-07-01" in tokenizer.decode(row["input_ids"]) for row in made.train)


def test_pairs_are_tokenized_with_the_prompt_once(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"prompt": "Hi", "chosen": "Yo", "rejected": "No"},
        {"prompt": "Hi", "chosen": "<think>why</think>Yo", "rejected": "<think>x</think>No"},
        {"prompt": "Hi", "chosen": "<think>why</think>Yo", "rejected": "No"},
    ]
    path = write_rows(rows, "p.jsonl")
    data = DataConfig(sources=(SourceConfig(path=str(path)),), packing="none", conflicts="drop")
    made = prepare_pairs(DataRequest(data, tokenizer, load_template("dualign"), seed=1))
    check_account(made.rows)
    assert made.rows["dropped"] == {"pair_modes_differ": 1}
    found = {
        made.groups[row["group"]][0]: tuple(
            tokenizer.decode(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        for row in made.train
    }
    head = (
        "<|im_start|>system\n/{}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found == {
        "no_think": (
            head.format("no_think") + "<think>\n\n</think>\n",
            "Yo<|im_end|>",
            "No<|im_end|>",
        ),
        "think": (
            head.format("think") + "<think>\n",
            "why\n</think>\n\nYo<|im_end|>",
            "x\n</think>\n\nNo<|im_end|>",
        ),
    }


def test_packed_rows_lie_on_the_disk(
    llama_tokenizer: PreTrainedTokenizerFast, write_rows: Write
) -> None:
    """In memory they would grow with the data."""
    data = DataConfig(
        sources=(SourceConfig(path=str(write_rows(mixed(30), "a.jsonl"))),),
        validation_rows=4,
        cache=False,
    )
    template = load_template("dualign", tokenizer=llama_tokenizer)
    made = prepare_sft(DataRequest(data, llama_tokenizer, template, seed=0))
    assert made.train.cache_files and made.validation is not None and made.validation.cache_files


def test_rows_tokenized_beside_rendering_come_out_as_one_by_one(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A thread tokenises some hundred rows while the next are rendered; faults stay in their places."""
    asked = {"role": "user", "content": "ten"}
    said = [
        {"role": "assistant", "content": "" if number % 7 == 3 else f"{number} apples"}
        for number in range(600)
    ]
    batch = {"messages": [[asked, answer] for answer in said]}
    encoder = ExampleEncoder(
        source=SourceConfig(path="made"),
        data=DataConfig(sources=(SourceConfig(path="made"),), conflicts="drop"),
        tokenizer=llama_tokenizer,
        template=load_template("dualign", tokenizer=llama_tokenizer),
        rows=np.arange(600),
    )
    together = encoder.encode(batch, list(range(600)))
    alone = [
        encoder.encode({"messages": [message]}, [number])[0]
        for number, message in enumerate(batch["messages"])
    ]
    assert [row.entry for row in together] == [row.entry for row in alone]
    refused = [row.row for row in together if row.fault]
    assert refused == list(range(3, 600, 7))
    assert together[4].conversations[0].messages[1].content == "4 apples"
    assert together[3].conversations == together[3].rendered == ()


@given(count=st.integers(1, 200), weight=st.floats(0.01, 4), seed=st.integers(0, 5))
def test_weights_draw_and_repeat_as_often_as_they_say(count: int, weight: float, seed: int) -> None:
    drawn = weighted_rows(count, weight, rng(seed, "weight"))
    assert len(drawn) == (count if weight >= 1 else round(count * weight))
    assert len(set(drawn.tolist())) == len(drawn)
    times = Counter(repeated(drawn, weight, rng(seed, "repeats")).tolist())
    assert set(times) == set(drawn.tolist())
    whole = max(1, int(weight))
    assert set(times.values()) <= {whole, whole + 1}
    if weight >= 1:
        assert times.total() == whole * count + round((weight - whole) * count)


def test_draws_are_independent_of_each_other() -> None:
    first, again, other = (rng(1, name, 0).random(4) for name in ("weight", "weight", "order"))
    assert (first == again).all() and not (first == other).any()
    held = held_out(10, 3, rng(1, "validation"))
    assert len(set(held.tolist())) == 3 and sorted(held) == held.tolist()


def test_the_account_by_hand() -> None:
    stats = RowStats(
        source="s", mode="think", kept=3, validation=1, repeats=2, examples=4, tokens=20
    )
    stats.dropped["too_long"] = 2
    rows = summarize_rows([stats])
    assert (rows["in"], rows["kept"], rows["tokens"]) == (5, 3, 20)
    assert rows["by"][0]["mean_tokens"] == 5.0
    check_account(rows)
