"""Whatever the mixture, the faults and the repairs: no row is lost, and what is trained on is what is told."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, DedupConfig, SourceConfig
from dualign.data.policies import MENDS
from dualign.data.prepare import DataRequest, SFTData, prepare_sft
from dualign.data.text.template import load_template
from dualign.errors import DataError

HI = {"role": "user", "content": "Hi"}


def row(number: int, answer: str, *turns: dict[str, str], **more: Any) -> dict[str, Any]:
    asked = {"role": "user", "content": f"How many? {number}"}
    return {"messages": [*turns, asked, {"role": "assistant", "content": answer}], **more}


def made(kind: str, number: int) -> dict[str, Any]:
    """A row of a kind; what is wrong with it has the kind's name."""
    trace = f"<think>\n{'count ' * (number % 5 + 1)}\n</think>\n\n"
    greeting = {"role": "assistant", "content": "Hello!"}
    kinds: dict[str, dict[str, Any]] = {
        "think": row(number, f"{trace}It is {number}."),
        "no_think": row(number, f"It is {number}."),
        "same": row(0, "It is always the same."),
        "no_think_with_trace": row(number, f"{trace}It is {number}.", mode="no_think"),
        "think_without_trace": row(number, f"It is {number}.", mode="think"),
        "mode_contradiction": row(
            number,
            f"It is {number}.",
            {"role": "system", "content": "/think"},
            mode="no_think",
        ),
        "unopened_think": row(number, f"count</think>It is {number}."),
        "unclosed_think": row(number, "<think>count"),
        "foreign_trace": row(number, f"<thinking>count</thinking>It is {number}."),
        "empty_answer": row(number, " "),
        "assistant_first": row(number, f"It is {number}.", greeting),
        "same_role_twice": row(number, f"It is {number}.", HI),
        "trace_is_answer": row(number, "<think>\nten\n</think>\n\nten"),
        "control_token": row(number, f"It is {number}.<|im_end|>"),
        "too_long": row(number, "ten " * 200),
    }
    return kinds[kind]


KINDS = ["think", "no_think", "same", *MENDS, "unclosed_think", "too_long"]
for kind in ("pair_modes_differ", "no_system_role"):  # of pairs; of a template that isn't used here
    KINDS.remove(kind)
FAULTS = [kind for kind in KINDS if kind not in ("think", "no_think", "same")]


@st.composite
def policies(draw: st.DrawFn) -> dict[str, str]:
    chosen = draw(st.lists(st.sampled_from(FAULTS), unique=True, max_size=6))
    named = {
        code: draw(st.sampled_from(["drop", *next((v for k, v in MENDS.items() if k == code), ())]))
        for code in chosen
    }
    return named | draw(st.sampled_from([{}, {"any": "drop"}]))


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[str], dict[str, Any]]:
    """The kinds of a source's rows, and the keys of its configuration."""
    rows = draw(st.lists(st.sampled_from(KINDS), min_size=3, max_size=20))
    rows += draw(st.lists(st.sampled_from(["think", "no_think"]), min_size=2, max_size=20))
    amount = draw(
        st.sampled_from(
            [
                {},
                {"weight": 0.6},
                {"weight": 2.3},
                {"rows": len(rows) // 2},
                {"tokens": 90},
                {"share": 0.2},
            ]
        )
    )
    return rows, {**amount, "on_fault": draw(policies())}


def trained(prepared: SFTData) -> dict[tuple[str, str], list[int]]:
    """The tokens of the documents of each group, taken out of the packed rows."""
    found: dict[tuple[str, str], list[int]] = {group: [] for group in prepared.groups}
    for packed in prepared.train:
        for group, length in zip(packed["doc_groups"], packed["seq_lengths"], strict=True):
            found[prepared.groups[group]].append(length)
    return found


def check(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    given_sources: list[tuple[list[str], dict[str, Any]]],
    options: dict[str, Any],
    seed: int,
) -> None:
    configs = []
    for number, (kinds, keys) in enumerate(given_sources):
        rows = [made(kind, place) for place, kind in enumerate(kinds)]
        path = folder / f"s{number}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in rows))
        configs.append(SourceConfig(path=str(path), **keys))
    data = DataConfig(sources=tuple(configs), max_tokens=128, conflicts="drop", **options)
    if data.problems():
        event("refused with the recipe")
        return
    try:
        prepared = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=seed))
    except DataError as error:
        event("refused with its rows")
        told = ("asked", "share", "mix", "no row is left", "nothing would be left")
        assert any(word in str(error) for word in told), error
        return
    event("prepared")
    rows = prepared.rows
    documents = trained(prepared)
    for entry in (rows, *rows["by"]):
        assert entry["in"] == entry["kept"] + sum(entry["dropped"].values())
        assert entry["examples"] == entry["kept"] - entry["validation"] + entry["repeats"]
        assert all(count <= entry["kept"] for count in entry["repaired"].values())
    for number, (kinds, _) in enumerate(given_sources):
        mine = [entry for entry in rows["by"] if entry["source"] == f"s{number}"]
        assert sum(entry["in"] for entry in mine) == len(kinds)
        dropped = sum((Counter(entry["dropped"]) for entry in mine), Counter())
        # A repair may lead to another fault, so codes needn't be those of the kinds.
        faulty = sum(kind in FAULTS for kind in kinds)
        assert sum(count for code, count in dropped.items() if code in FAULTS) <= faulty
    for entry in rows["by"]:
        lengths = documents.pop((entry["mode"], entry["source"]), [])
        assert (len(lengths), sum(lengths)) == (entry["examples"], entry["tokens"])
        assert max(lengths, default=0) == entry["max_tokens"]
        assert entry["mean_tokens"] == (round(float(np.mean(lengths)), 1) if lengths else 0)
        assert entry["share"] == pytest.approx(entry["tokens"] / rows["tokens"], abs=1e-6)
    assert not any(documents.values())


MIXTURES = st.fixed_dictionaries(
    {
        "mix": st.sampled_from([None, None, {"think": 0.5, "no_think": 0.5}]),
        "dedup": st.sampled_from([None, DedupConfig()]),
        "validation_rows": st.sampled_from([0, 0, 3]),
    }
)


@settings(max_examples=20)
@given(st.lists(sources(), min_size=1, max_size=3), MIXTURES, st.integers(0, 3))
def test_the_account_adds_up(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    given_sources: list[tuple[list[str], dict[str, Any]]],
    options: dict[str, Any],
    seed: int,
) -> None:
    check(tmp_path, tokenizer, given_sources, options, seed)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.lists(sources(), min_size=1, max_size=3), MIXTURES, st.integers(0, 3))
def test_the_account_adds_up_over_many_mixtures(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    given_sources: list[tuple[list[str], dict[str, Any]]],
    options: dict[str, Any],
    seed: int,
) -> None:
    check(tmp_path, tokenizer, given_sources, options, seed)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_row_has_the_fault_of_its_name(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(made(item, 1)) + "\n" for item in (kind, "think")))
    data = DataConfig(sources=(SourceConfig(path=str(path)),), max_tokens=128, conflicts="drop")
    rows = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=1)).rows
    assert (rows["kept"], rows["dropped"]) == (1, {kind: 1})
