"""Without a system role the system text stands in the first user turn, in training and afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import Message
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.data.text.system_role import takes_system
from dualign.data.text.template import ChatTemplate, load_template
from dualign.errors import DataError
from dualign.models.prompts import prompt, switch_of
from dualign.models.source import ModelSource
from dualign.models.tokenizer import load_tokenizer
from dualign.switch import Switch
from tests.data.text import families

WriteRows = Callable[..., Path]
FOREIGN = Path(trl.__file__).parent / "chat_templates"
REPAIR = {"no_system_role": "system_into_user"}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
TALK = [
    SYSTEM,
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "No"},
]


def start_of(
    tokenizer: PreTrainedTokenizerFast, folder: Path, text: str | dict[str, str]
) -> ModelSource:
    tokenizer.save_pretrained(folder)
    start = AutoTokenizer.from_pretrained(folder)
    start.chat_template = text
    start.save_pretrained(folder)
    return ModelSource(base=str(folder))


def config(path: Path, **source: Any) -> DataConfig:
    return DataConfig(
        sources=(SourceConfig(path=str(path), **source),), packing="none", cache=False
    )


@pytest.mark.parametrize("name", ["gemma", "gemma3", "qwen3", "llama3", "phi3", "cohere"])
def test_templates_of_families_take_a_system_text_or_not(name: str) -> None:
    template = ChatTemplate(name=name, text=(FOREIGN / f"{name}.jinja").read_text())
    assert takes_system(template) == (name != "gemma")


@pytest.mark.parametrize("name", ["dualign", "chatml", "smollm3", "smollm3-training"])
def test_our_templates_take_a_system_text(name: str) -> None:
    assert takes_system(load_template(name))


def test_a_system_text_is_refused_with_the_name_of_its_repair(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = start_of(tokenizer, tmp_path / "start", families.GEMMA)
    loaded, template = load_tokenizer(start, "tokenizer", {})
    path = write_rows([{"messages": TALK}])
    with pytest.raises(
        DataError, match=r"row 0: a system text .*system_into_user.*\[no_system_role"
    ):
        prepare_sft(DataRequest(config(path), loaded, template, seed=0))


def test_the_model_is_asked_as_it_was_trained(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = start_of(tokenizer, tmp_path / "start", families.GEMMA)
    data = config(write_rows([{"messages": TALK}, {"messages": TALK[1:]}]), on_fault=REPAIR)
    assert data.folds_system
    loaded, template = load_tokenizer(start, "tokenizer", {}, folds_system=True)
    prepared = prepare_sft(DataRequest(data, loaded, template, seed=0))
    assert prepared.rows["repaired"] == {"system_into_user": 1}
    texts = sorted(loaded.decode(ids) for ids in prepared.train["input_ids"])
    turns = "<start_of_turn>model\nYes<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>\n"
    turns += "<start_of_turn>model\nNo<end_of_turn>\n"
    assert texts == [
        f"<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n{turns}",
        f"<start_of_turn>user\nHi<end_of_turn>\n{turns}",
    ]
    loaded.save_pretrained(tmp_path / "sft")
    model = AutoTokenizer.from_pretrained(tmp_path / "sft")
    for talk, text in ((TALK, texts[0]), (TALK[1:], texts[1])):
        asked = prompt(model, talk[:-1], "no_think", switch_of(model))
        assert text == asked + "No<end_of_turn>\n"
    # A later stage that trains on this template needs no repair.
    again, later = load_tokenizer(ModelSource(base=str(tmp_path / "sft")), "tokenizer", {})
    plain = prepare_sft(DataRequest(config(write_rows([{"messages": TALK}])), again, later, seed=0))
    assert again.decode(plain.train["input_ids"][0]) == texts[0]
    assert again.chat_template == loaded.chat_template


def test_sources_without_the_repair_stay_refused_beside_one_with_it(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = start_of(tokenizer, tmp_path / "start", families.GEMMA)
    loaded, template = load_tokenizer(start, "tokenizer", {}, folds_system=True)
    path = write_rows([{"messages": TALK}])
    with pytest.raises(DataError, match="no_system_role"):
        prepare_sft(DataRequest(config(path), loaded, template, seed=0))
    dropped = config(
        write_rows([{"messages": TALK}, {"messages": TALK[1:]}]), on_fault={"any": "drop"}
    )
    counts = prepare_sft(DataRequest(dropped, loaded, template, seed=0)).rows
    assert counts["dropped"] == {"no_system_role": 1}


def test_a_row_whose_first_turn_is_no_user_s_is_not_mended(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = start_of(tokenizer, tmp_path / "start", families.GEMMA)
    loaded, template = load_tokenizer(start, "tokenizer", {}, folds_system=True)
    path = write_rows([{"messages": [SYSTEM, *TALK[2:]]}])
    with pytest.raises(DataError, match="can't mend it"):
        prepare_sft(DataRequest(config(path, on_fault=REPAIR), loaded, template, seed=0))


def test_the_mode_is_that_of_the_flag_in_the_system_text(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = start_of(tokenizer, tmp_path / "start", families.GEMMA)
    loaded, template = load_tokenizer(start, "tokenizer", {}, folds_system=True)
    rows = [{"messages": [{"role": "system", "content": "Be brief. /no_think"}, *TALK[1:]]}]
    data = config(write_rows(rows), on_fault=REPAIR)
    prepared = prepare_sft(DataRequest(data, loaded, template, seed=0))
    assert prepared.groups == (("no_think", "rows"),)


def test_pairs_are_repaired_alike(
    write_rows: WriteRows, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = start_of(tokenizer, tmp_path / "start", families.GEMMA)
    loaded, template = load_tokenizer(start, "tokenizer", {}, folds_system=True)
    pair = {"prompt": TALK[:2], "chosen": [TALK[2]], "rejected": [TALK[4]]}
    data = config(write_rows([pair]), on_fault=REPAIR)
    prepared = prepare_pairs(DataRequest(data, loaded, template, seed=0))
    assert prepared.rows["repaired"] == {"system_into_user": 1}
    assert loaded.decode(prepared.train["prompt_ids"][0]) == (
        "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_template_with_a_system_role_is_left_as_it_is(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    start = start_of(tokenizer, tmp_path / "start", families.PLAIN)
    loaded, _ = load_tokenizer(start, "tokenizer", {}, folds_system=True)
    assert loaded.chat_template == families.PLAIN


def test_named_templates_and_a_switch_by_text_work_with_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    named = {"default": families.GEMMA, "tool_use": families.GEMMA}
    start = start_of(tokenizer, tmp_path / "start", named)
    words = Switch(think={"system": "Think."}, no_think={"system": "Answer."})
    loaded, template = load_tokenizer(start, "tokenizer", {}, words, folds_system=True)
    assert set(loaded.chat_template) == set(named) and switch_of(loaded) == words
    question = [{"role": "user", "content": "Hi"}]
    expected = "<start_of_turn>user\nThink.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert prompt(loaded, question, "think", words) == expected
    assert template.prompt((Message(role="user", content="Hi"),), mode="think") == expected
