"""Shares of tokens by source and by mode: reached to a row's tokens, or refused with the numbers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dualign.config import Document, parse
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.mix.sampling import TokenCounts, mode_targets, rows_for, sample, source_targets
from dualign.data.prepare import DataRequest, prepare_sft
from dualign.data.text.template import load_template
from dualign.errors import ConfigError, DataError

Write = Callable[[list[dict[str, Any]], str], Path]
THINK, NO_THINK = 0, 1


def test_shares_by_hand() -> None:
    have = np.array([[1000.0, 0], [2000, 3000]])
    assert source_targets(have, [None, None], "ab").tolist() == [1000, 5000]
    assert source_targets(have, [None, 0.5], "ab").tolist() == [1000, 1000]
    assert source_targets(have, [0.25, 0.75], "ab").tolist() == [1000, 3000]
    assert source_targets(have, [0.9, 0.1], "ab").tolist() == pytest.approx([1000, 1000 / 9])


def test_a_mix_by_hand() -> None:
    have = np.array([[900.0, 0], [0, 100]])
    even = {"think": 0.5, "no_think": 0.5}
    assert mode_targets(have, [None, None], even, "ab") == pytest.approx(
        np.array([[100, 0], [0, 100]])
    )
    both = np.array([[900.0, 100], [300, 0]])
    # 100 of no_think are a quarter of 400: think gives 300 of 1200, from each source a quarter
    wanted = mode_targets(both, [None, None], {"think": 0.75, "no_think": 0.25}, "ab")
    assert wanted == pytest.approx(np.array([[225, 100], [75, 0]]))
    with_share = mode_targets(both, [None, 0.5], {"think": 0.75, "no_think": 0.25}, "ab")
    assert with_share == pytest.approx(np.array([[100, 100], [200, 0]]))
    only = mode_targets(both, [None, None], {"think": 1.0}, "ab")
    assert only == pytest.approx(np.array([[900, 0], [300, 0]]), abs=1e-3)


def test_shares_that_cannot_be_had_are_refused_with_what_there_is() -> None:
    have = np.array([[1000.0, 0], [0, 500]])
    with pytest.raises(DataError) as raised:
        source_targets(have, [None, 0.5], ["a", "b"])
    assert str(raised.value) == (
        "source b: a share of 0.5 beside the 1,000 tokens of the others is 1,000 tokens, its rows "
        "hold 500. Ask for at most 0.333, or take less of the others (weight, tokens)."
    )
    with pytest.raises(DataError, match=r"no row that is kept is think \(sources: a, b\)"):
        mode_targets(np.array([[0.0, 9], [0, 9]]), [None, None], {"think": 1.0}, ["a", "b"])
    with pytest.raises(DataError, match=r"can't both be had: think 0\.9, b 0\.5"):
        mode_targets(have, [None, 0.5], {"think": 0.9, "no_think": 0.1}, ["a", "b"])


def test_the_nearest_number_of_rows_is_taken() -> None:
    lengths = np.array([10, 20, 30])
    wanted = [0, 4, 6, 10, 19, 21, 44, 46, 60, 99]
    assert [rows_for(lengths, tokens) for tokens in wanted] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


LENGTHS = st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=30)


def as_rows(sources: list[list[tuple[int, bool]]]) -> TokenCounts:
    flat = [(number, *row) for number, rows in enumerate(sources) for row in rows]
    return TokenCounts(
        source_index=np.array([number for number, _, _ in flat]),
        tokens=np.array([tokens for _, tokens, _ in flat]),
        mode=np.array([THINK if think else NO_THINK for _, _, think in flat]),
        labels=[f"s{number}" for number in range(len(sources))],
    )


def config(shares: list[float | None], mix: dict[str, float] | None = None) -> DataConfig:
    sources = tuple(SourceConfig(path=f"s{n}", share=share) for n, share in enumerate(shares))
    return DataConfig(sources=sources, mix=mix)


@given(sources=st.lists(LENGTHS, min_size=2, max_size=4), data=st.data(), seed=st.integers(0, 3))
def test_shares_of_sources_are_reached_to_half_a_row(
    sources: list[list[tuple[int, bool]]], data: st.DataObject, seed: int
) -> None:
    shares: list[float | None] = [
        data.draw(st.none() | st.floats(0.05, 0.3), label="share") for _ in sources
    ]
    assume(any(share is None for share in shares))
    rows = as_rows(sources)
    have = [sum(tokens for tokens, _ in source) for source in sources]
    free = sum(n for n, share in zip(have, shares, strict=True) if share is None)
    total = free / (1 - sum(share or 0 for share in shares))
    try:
        chosen = sample(np.arange(len(rows.source_index)), rows, config(shares), seed)
    except DataError:
        short = [s and s * total > n for n, s in zip(have, shares, strict=True)]
        assert any(short), "refused although every source has enough"
        return
    assert len(set(chosen.train.tolist())) == len(chosen.train)
    for number, share in enumerate(shares):
        mine = rows.tokens[chosen.train[rows.source_index[chosen.train] == number]]
        longest = max(tokens for tokens, _ in sources[number])
        wanted = have[number] if share is None else share * total
        assert abs(mine.sum() - wanted) <= (longest / 2 if share else 0) + 1e-6
    lost = sum(len(places) for places in chosen.left_out.values())
    assert lost + len(chosen.train) == len(rows.source_index)


@given(
    sources=st.lists(LENGTHS, min_size=1, max_size=4),
    think=st.floats(0.0, 1.0),
    share=st.none() | st.floats(0.1, 0.9),
    seed=st.integers(0, 3),
)
def test_parts_of_modes_are_reached_to_a_row(
    sources: list[list[tuple[int, bool]]], think: float, share: float | None, seed: int
) -> None:
    shares: list[float | None] = [None] * len(sources)
    if len(sources) > 1:
        shares[0] = share
    rows = as_rows(sources)
    mix = {"think": think, "no_think": 1 - think}
    try:
        chosen = sample(np.arange(len(rows.source_index)), rows, config(shares, mix), seed)
    except DataError as error:
        assert "no row that is kept is" in str(error) or "can't both be had" in str(error)
        return
    made = rows.tokens[chosen.train].sum()
    thought = rows.tokens[chosen.train[rows.mode[chosen.train] == THINK]].sum()
    longest = rows.tokens.max()
    assert abs(thought - think * made) <= longest
    if shares[0] is not None:
        mine = rows.tokens[chosen.train[rows.source_index[chosen.train] == 0]].sum()
        assert abs(mine - shares[0] * made) <= 3 * longest  # a row of each mode, and of the total
    if shares[0] is None:
        whole = [rows.tokens[rows.mode == mode].sum() for mode in (THINK, NO_THINK)]
        most = min(n / part for n, part in zip(whole, mix.values(), strict=True) if part > 1e-9)
        assert abs(made - most) <= longest, "as many tokens as the scarcer mode allows"


@given(lengths=LENGTHS, tokens=st.integers(1, 4000), seed=st.integers(0, 3))
def test_a_number_of_tokens_is_reached_to_half_a_row_or_refused(
    lengths: list[tuple[int, bool]], tokens: int, seed: int
) -> None:
    rows = as_rows([lengths])
    data = DataConfig(sources=(SourceConfig(path="s", tokens=tokens),))
    have = rows.tokens.sum()
    if have < tokens:
        with pytest.raises(DataError, match=f"tokens: {tokens:,} asked, .* hold {have:,}"):
            sample(np.arange(len(lengths)), rows, data, seed)
        return
    chosen = sample(np.arange(len(lengths)), rows, data, seed)
    assert abs(rows.tokens[chosen.train].sum() - tokens) <= rows.tokens.max() / 2


def test_the_first_rows_are_not_favoured() -> None:
    rows = as_rows([[(10, True)] * 100])
    data = DataConfig(sources=(SourceConfig(path="s", tokens=100),))
    seen = Counter[int]()
    for seed in range(400):
        seen.update(sample(np.arange(100), rows, data, seed).train.tolist())
    assert seen.total() == 4000 and 325 < sum(seen[row] for row in range(10)) < 475


def chat(number: int, *, think: bool) -> dict[str, Any]:
    trace = f"<think>\n{'step ' * (number % 7 + 3)}\n</think>\n\n" if think else ""
    turns = [
        {"role": "user", "content": f"How many? {number}"},
        {"role": "assistant", "content": f"{trace}There are {number}."},
    ]
    return {"messages": turns}


def test_the_account_shows_the_shares_and_what_they_left_out(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows([chat(number, think=number % 2 == 0) for number in range(120)], "a.jsonl")
    base = write_rows([chat(number, think=True) for number in range(80)], "b.jsonl").parent
    data = DataConfig(
        sources=(SourceConfig(path="a.jsonl"), SourceConfig(path="b.jsonl", share=0.3)),
        mix={"think": 0.6, "no_think": 0.4},
        max_tokens=256,
        validation_rows=10,
    )
    made = prepare_sft(
        DataRequest(data, tokenizer, load_template("dualign"), seed=3, base=base)
    ).rows
    by = {(entry["source"], entry["mode"]): entry for entry in made["by"]}
    assert made["in"] == 200 == made["kept"] + made["dropped"]["mix"]
    think = by["a", "think"]["share"] + by["b", "think"]["share"]
    assert think == pytest.approx(0.6, abs=0.01)
    assert by["b", "think"]["share"] == pytest.approx(0.3, abs=0.01)
    for entry in made["by"]:
        assert entry["in"] == entry["kept"] + sum(entry["dropped"].values())
        assert entry["examples"] == entry["kept"] - entry["validation"] + entry["repeats"]


def test_rows_and_tokens_are_counted_under_their_keys(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows([chat(number, think=True) for number in range(60)], "a.jsonl")
    base = write_rows([chat(number, think=False) for number in range(60)], "b.jsonl").parent
    data = DataConfig(
        sources=(SourceConfig(path="a.jsonl", rows=20), SourceConfig(path="b.jsonl", tokens=900)),
        max_tokens=256,
    )
    made = prepare_sft(
        DataRequest(data, tokenizer, load_template("dualign"), seed=3, base=base)
    ).rows
    by = {entry["source"]: entry for entry in made["by"] if entry["kept"]}
    assert by["a"]["kept"] == 20 and made["dropped"]["rows"] == 40
    assert abs(by["b"]["tokens"] - 900) <= by["b"]["max_tokens"]
    assert by["b"]["dropped"]["tokens"] == 60 - by["b"]["kept"]


def test_rows_say_what_a_share_chooses_from(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows([chat(number, think=True) for number in range(60)], "a.jsonl")
    base = write_rows([chat(number, think=False) for number in range(60)], "b.jsonl").parent
    few = SourceConfig(path="b.jsonl", rows=40, share=0.25, streaming=True)
    assert few.problems() == []
    data = DataConfig(sources=(SourceConfig(path="a.jsonl", rows=30), few), max_tokens=256)
    made = prepare_sft(
        DataRequest(data, tokenizer, load_template("dualign"), seed=3, base=base)
    ).rows
    by = {entry["source"]: entry for entry in made["by"] if entry["kept"]}
    assert by["b"]["share"] == pytest.approx(0.25, abs=0.02)
    assert made["dropped"] == {"rows": 50, "share": 40 - by["b"]["kept"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mix": {"think": 0.7, "no_think": 0.7}}, "data.mix: the parts add up to 1.4: expected 1"),
        ({"mix": {"thinks": 1.0}}, "data.mix.thinks: no mode (did you mean 'think'?)"),
        ({"mix": {"think": -1, "no_think": 2}}, "data.mix.think: expected 0 to 1, found -1"),
        (
            {"mix": {"think": 0.5, "no_think": 0.5}, "sources": [{"path": "a", "mode": "think"}]},
            "data.mix.no_think: every source says another mode: think",
        ),
        (
            {"sources": [{"path": "a", "share": 0.5}, {"path": "b", "share": 0.3}]},
            "every source has a share and they add up to 0.8: expected 1",
        ),
        (
            {"sources": [{"path": "a", "share": 1}, {"path": "b"}]},
            "shares add up to 1: nothing is left for the sources without one",
        ),
    ],
)
def test_shares_that_cannot_be_are_refused_with_the_recipe(
    data: dict[str, Any], message: str
) -> None:
    document = Document(file="r.yaml")
    parse(DataConfig, {"sources": [{"path": "a"}], **data}, document, ("data",))
    with pytest.raises(ConfigError) as raised:
        document.raise_problems()
    assert message in str(raised.value)
