"""Rows of both modes are trained only where the template asks them in two ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.data.text.template import ChatTemplate
from dualign.errors import DataError, TemplateError
from dualign.switch import Switch
from tests.data.text import families

WriteRows = Callable[..., Path]
THINKING = {"thinking": True}, {"thinking": False}


def row(mode: str, *, system: str | None = None, **more: Any) -> dict[str, Any]:
    trace = "<think>\nwhy\n</think>\n\n" if mode == "think" else ""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [
        {"role": "user", "content": f"{mode}?"},
        {"role": "assistant", "content": f"{trace}Yes"},
    ]
    return {"messages": turns, **more}


def prepared(
    path: Path,
    tokenizer: PreTrainedTokenizerFast,
    family: str,
    switch: Switch | None = None,
    **data: Any,
) -> list[str]:
    """The texts that are trained on."""
    template = ChatTemplate(name=family, text=getattr(families, family)).with_switch(switch)
    config = DataConfig(
        sources=(SourceConfig(path=str(path)),), packing="none", cache=False, **data
    )
    trained = prepare_sft(DataRequest(config, tokenizer, template, seed=0))
    return sorted(tokenizer.decode(ids) for ids in trained.train["input_ids"])


def test_one_prompt_for_both_modes_is_refused_with_what_to_write(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows([row("no_think"), row("think"), row("think")])
    with pytest.raises(TemplateError) as caught:
        prepared(path, tokenizer, "PLAIN")
    said = str(caught.value)
    assert said.startswith("rows, row 1 is think and rows, row 0 is no_think, but template 'PLAIN'")
    assert "Tried: the variables enable_thinking, thinking" in said
    assert "switch: {think: {thinking: true}, no_think: {thinking: false}}" in said
    with pytest.raises(TemplateError, match=r"Tried: the switch \{think: \{depth: 1\}"):
        prepared(path, tokenizer, "PLAIN", Switch(think={"depth": 1}, no_think={"depth": 0}))
    assert len(prepared(path, tokenizer, "PLAIN", supervise="all")) == 3


def test_rows_of_one_mode_need_no_switch(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert len(prepared(write_rows([row("think")] * 3), tokenizer, "PLAIN")) == 3


def test_rows_that_switch_by_their_own_variables_are_trained(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        row("think", chat_template_kwargs={"effort": 9}),
        row("no_think", chat_template_kwargs={"effort": 0}),
    ]
    texts = prepared(write_rows(rows), tokenizer, "CUSTOM")
    assert ["Effort: 0" in texts[0], "Effort: 9" in texts[1]] == [True, True]
    rows[1]["chat_template_kwargs"]["effort"] = 9
    with pytest.raises(TemplateError, match="asks both in one way"):
        prepared(write_rows(rows), tokenizer, "CUSTOM")


def test_many_system_texts_are_no_switch_and_a_few_may_be(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    modes = ("think", "no_think")
    few = [row(mode, system=f"Say {mode} {n}.") for mode in modes for n in range(8)]
    assert len(prepared(write_rows(few), tokenizer, "PLAIN")) == 16
    many = [row(mode, system=f"You are {mode} {n}.") for mode in modes for n in range(9)]
    with pytest.raises(TemplateError, match="asks both in one way"):
        prepared(write_rows(many), tokenizer, "PLAIN")
    assert len(prepared(write_rows(many), tokenizer, "NEMOTRON")) == 18
    words = Switch(think={"system": "Think."}, no_think={"system": "Answer."})
    assert len(prepared(write_rows(many), tokenizer, "PLAIN", words)) == 18
    own = [{**entry, "chat_template_kwargs": {"n": len(entry["messages"][0]["content"])}} for entry in many]  # fmt: skip
    assert len(prepared(write_rows(own), tokenizer, "PLAIN")) == 18


@pytest.mark.parametrize("family", ["GRANITE", "GPT_OSS", "NEMOTRON"])
def test_a_known_family_is_trained_without_a_word_about_it(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    no_think, think = sorted(
        prepared(write_rows([row("think"), row("no_think")]), tokenizer, family),
        key=lambda text: "why" in text,
    )
    assert think.partition("<|im_start|>user")[0] != no_think.partition("<|im_start|>user")[0]


def test_a_template_that_forgets_its_switch_beside_a_system_text_is_refused_for_those_rows(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [row("think", system="Be brief."), row("no_think", system="Be brief.")]
    with pytest.raises(TemplateError, match="asks both in one way"):
        prepared(write_rows(rows), tokenizer, "GRANITE")
    rows[1]["messages"][0]["content"] = "Be quick."
    assert len(prepared(write_rows(rows), tokenizer, "GRANITE")) == 2


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("GRANITE", {"chat_template_kwargs": {"thinking": True}}, "the row's thinking says think"),
        ("NEMOTRON", {"system": "detailed thinking on"}, "'detailed thinking on' in the system"),
    ],
)
def test_a_row_whose_switch_says_another_mode_contradicts_itself(
    write_rows: WriteRows,
    tokenizer: PreTrainedTokenizerFast,
    family: str,
    more: dict[str, Any],
    message: str,
) -> None:
    path = write_rows([{**row("no_think", **more), "mode": "no_think"}])
    with pytest.raises(DataError, match=message):
        prepared(path, tokenizer, family)


def test_a_repaired_mode_has_the_switch_of_its_mode(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows([row("no_think", system="detailed thinking on")])
    template = ChatTemplate(name="NEMOTRON", text=families.NEMOTRON)
    source = SourceConfig(
        path=str(path), mode="no_think", on_fault={"mode_contradiction": "as_no_think"}
    )
    config = DataConfig(sources=(source,), packing="none", cache=False)
    data = prepare_sft(DataRequest(config, tokenizer, template, seed=0))
    assert data.rows["repaired"] == {"as_no_think": 1}
    assert tokenizer.decode(data.train["input_ids"][0]).startswith(
        "<|im_start|>system\ndetailed thinking off<|im_end|>"
    )


def test_pairs_of_both_modes_are_refused_alike(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        {"prompt": "a?", "chosen": "yes", "rejected": "no"},
        {
            "prompt": "b?",
            "chosen": "<think>\nw\n</think>\n\nyes",
            "rejected": "<think>\nv\n</think>\n\nno",
        },
    ]
    config = DataConfig(
        sources=(SourceConfig(path=str(write_rows(rows))),), packing="none", cache=False
    )
    template = ChatTemplate(name="PLAIN", text=families.PLAIN)
    with pytest.raises(TemplateError, match="asks both in one way"):
        prepare_pairs(DataRequest(config, tokenizer, template, seed=0))
    granite = ChatTemplate(name="GRANITE", text=families.GRANITE)
    assert len(prepare_pairs(DataRequest(config, tokenizer, granite, seed=0)).train) == 2
