"""What a trained tokenizer is saved with: its switch, and all of its named templates."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dualign.data.conversation import MODES
from dualign.doctor.doctor import diagnose_model
from dualign.errors import CheckpointError, TemplateError
from dualign.models.prompts import prompt, saved_switch, switch_of
from dualign.models.source import ModelSource
from dualign.models.tokenizer import load_tokenizer
from dualign.switch import ENABLE_THINKING, Switch
from tests.chat_model import make_tokenizer
from tests.data.text import families

EFFORT = Switch(think={"effort": 2}, no_think={"effort": 0})
QUESTION = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def saved(folder: Path, template: str | dict[str, str]) -> ModelSource:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return ModelSource(base=str(folder))


def reloaded(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_saved_template_states_a_named_switch_once(tmp_path: Path) -> None:
    start = saved(tmp_path / "start", families.CUSTOM)
    tokenizer, chat = load_tokenizer(start, "tokenizer", {"date": "2025"}, EFFORT)
    model = reloaded(tokenizer, tmp_path / "sft")
    assert switch_of(model) == saved_switch(tmp_path / "sft") == chat.switch == EFFORT
    assert len({prompt(model, QUESTION, mode, switch_of(model)) for mode in MODES}) == 2
    for mode in MODES:
        assert prompt(model, QUESTION, mode, EFFORT).startswith(
            f"<|im_start|>system\nEffort: {EFFORT.of(mode)['effort']}<|im_end|>"
        )
    again, _ = load_tokenizer(ModelSource(base=str(tmp_path / "sft")), "tokenizer", {}, EFFORT)
    assert again.chat_template == model.chat_template


def test_doctor_knows_the_template_that_a_stage_saved(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(families.CUSTOM, encoding="utf-8")
    start = saved(tmp_path / "start", families.PLAIN)
    kwargs = {"date": "2025"}
    tokenizer, _ = load_tokenizer(start, str(file), kwargs, EFFORT)
    folder = tmp_path / "sft"
    tokenizer.save_pretrained(folder)
    switch = {mode: dict(EFFORT.of(mode)) for mode in MODES}
    config = {"template": str(file), "template_kwargs": kwargs, "switch": switch}
    run = {"schema": 1, "name": "sft", "kind": "sft", "config": config}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    found = {finding.code for finding in diagnose_model(str(folder)).findings.all()}
    assert not {"template_not_trained", "mode_switch_dead"} & found
    (folder / "chat_template.jinja").write_text(families.CUSTOM, encoding="utf-8")
    found = {finding.code for finding in diagnose_model(str(folder)).findings.all()}
    assert {"template_not_trained", "mode_switch_dead"} <= found


@pytest.mark.parametrize("switch", [None, ENABLE_THINKING])
def test_a_switch_that_the_template_has_is_not_stated(
    tmp_path: Path, switch: Switch | None
) -> None:
    start = saved(tmp_path / "start", families.CUSTOM)
    tokenizer, _ = load_tokenizer(start, "dualign", {}, switch)
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert switch_of(tokenizer) == ENABLE_THINKING


def test_all_named_templates_are_saved_and_rows_with_tools_have_theirs(tmp_path: Path) -> None:
    named = {"default": families.GRANITE, "tool_use": families.NEMOTRON, "rag": families.PLAIN}
    start = saved(tmp_path / "start", named)
    tokenizer, chat = load_tokenizer(start, "tokenizer", {})
    model = reloaded(tokenizer, tmp_path / "sft")
    assert model.chat_template == named
    assert chat.text == families.GRANITE and chat.tool_use == families.NEMOTRON
    with_tools = model.apply_chat_template(
        QUESTION, tools=[TOOL], add_generation_prompt=True, tokenize=False
    )
    assert with_tools.startswith("<|im_start|>system\ndetailed thinking on")


def test_named_templates_without_a_default_are_refused_by_their_names(tmp_path: Path) -> None:
    start = saved(tmp_path, {"tool_use": families.PLAIN, "rag": families.PLAIN})
    with pytest.raises(TemplateError, match="the templates rag, tool_use and none named default"):
        load_tokenizer(start, "tokenizer", {})


def test_kwargs_are_defaults_of_every_named_template(tmp_path: Path) -> None:
    start = saved(tmp_path, {"default": families.CUSTOM, "tool_use": families.CUSTOM})
    tokenizer, _ = load_tokenizer(start, "tokenizer", {"effort": 3})
    text = tokenizer.apply_chat_template(QUESTION, tools=[TOOL], tokenize=False)
    assert "Effort: 3" in text


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_tokenizer_that_cannot_be_read_is_one_message(tmp_path: Path, text: str) -> None:
    source = saved(tmp_path, "{{ messages }}")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="its tokenizer can't be read"):
        load_tokenizer(source, "dualign", {})


def test_a_hub_id_that_cannot_be_reached_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource(base="nobody/no-such-model-of-dualign")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="a hub id that is in the cache or can be reached"):
        load_tokenizer(source, "dualign", {})
