"""Public sets come in without a mapping if one reading is possible; the others are told what they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.faults import RowError
from dualign.data.prepare import DataRequest, PairData, SFTData, prepare_pairs, prepare_sft
from dualign.data.rows.reading import reading_notes
from dualign.data.text.template import load_template
from dualign.data.tokens.labels import IGNORE_INDEX
from tests.data.rows.public_sets import SETS, PublicSet, ask, chat, tell, wrong

WriteRows = Callable[..., Path]


def prepared(
    public: PublicSet, write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> SFTData | PairData:
    path = write_rows([public.row(number) for number in range(10)])
    data = DataConfig(
        sources=(SourceConfig(path=str(path)),),
        max_tokens=1024,
        cache=False,
        supervise=public.supervise,  # type: ignore[arg-type]
    )
    template = load_template("dualign", tokenizer=tokenizer)
    prepare = prepare_pairs if public.pairs else prepare_sft
    return prepare(DataRequest(data, tokenizer, template, seed=0))


@pytest.mark.parametrize("public", SETS, ids=lambda item: item.name)
def test_ten_rows_of_a_public_set_come_in_or_are_told_what_they_are(
    public: PublicSet, write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    if public.result != "in":
        with pytest.raises(RowError) as raised:
            prepared(public, write_rows, tokenizer)
        assert raised.value.code == public.result
        return
    data = prepared(public, write_rows, tokenizer)
    assert (data.rows["in"], data.rows["kept"], data.rows["dropped"]) == (10, 10, {})
    assert {group[0] for group in data.groups} == {public.mode}
    if isinstance(data, PairData):
        rows = sorted(data.train, key=lambda row: tokenizer.decode(row["prompt_ids"]))
        assert [spoken(row["chosen_ids"], tokenizer) for row in rows] == list(map(tell, range(10)))
        assert [spoken(row["rejected_ids"], tokenizer) for row in rows] == list(
            map(wrong, range(10))
        )
        assert all(
            tokenizer.decode(row["prompt_ids"]).count(ask(number)) == 1
            for number, row in enumerate(rows)
        )
        return
    given, learned = (joined(data, tokenizer, supervised=value) for value in (False, True))
    for number in range(10):
        for text in public.texts(number):
            assert learned.count(text) == 1, text
        assert (given.count(ask(number)) == 1) == (public.supervise != "all")


def spoken(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(ids).removesuffix("<|im_end|>\n").removesuffix("<|im_end|>")


def joined(data: SFTData, tokenizer: PreTrainedTokenizerFast, *, supervised: bool) -> str:
    """All that is learned of the packed rows, or all that is given to the model."""
    return "".join(
        tokenizer.decode(
            [
                token
                for token, label in zip(row["input_ids"], row["labels"], strict=True)
                if (label != IGNORE_INDEX) == supervised
            ]
        )
        for row in data.train
    )


def test_a_reading_by_known_names_and_columns_that_arent_used_are_said(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    def notes(name: str) -> list[str]:
        public = next(public for public in SETS if public.name == name)
        return list(reading_notes(prepared(public, write_rows, tokenizer).sources))

    assert notes("dolly") == [
        'rows.jsonl: read by the names of its columns as {prompt: "{instruction}\\n\\n{context}", '
        "completion: response}; `columns` of the source says otherwise",
        "rows.jsonl: columns that aren't used: category",
    ]
    assert notes("alpaca") == ["rows.jsonl: columns that aren't used: text"]
    assert notes("chosen_messages")[1] == (
        "rows.jsonl: score would change what is learned, by the name, and isn't used"
    )
    assert notes("DPO (axolotl chat_template)") == []


def test_columns_without_a_value_arent_named_and_a_trace_that_isnt_read_is(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    public = PublicSet(
        name="chat",
        row=lambda n: {
            "messages": chat(n),
            "language": None,
            "system_prompt": "",
            "thinking": f"Because of {n}.",
        },
    )
    assert list(reading_notes(prepared(public, write_rows, tokenizer).sources)) == [
        "rows.jsonl: thinking would change what is learned, by the name, and isn't used"
    ]


@pytest.mark.parametrize(
    ("traces", "mode"),
    [
        (("Two.", "Three and four are seven, as everybody knows."), "think"),
        (("two and two", "three"), "think"),
        (("on", "off"), "no_think"),
        (("high", "low"), "no_think"),
    ],
)
def test_a_short_trace_is_one_and_a_switch_is_none(
    traces: tuple[str, str],
    mode: str,
    write_rows: WriteRows,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    public = PublicSet(
        name="short traces",
        row=lambda n: {"question": ask(n), "reasoning": traces[n % 2], "response": tell(n)},
        mode=mode,
    )
    data = prepared(public, write_rows, tokenizer)
    assert {group[0] for group in data.groups} == {mode}
    opened = joined(data, tokenizer, supervised=True).count(f"{traces[0]}\n</think>")
    assert opened == (5 if mode == "think" else 0)
