"""A family whose template strips traces is offered TRL's training template, which asks alike."""

import copy
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dualign.data.conversation import Conversation, Message
from dualign.data.text.installed import is_relative, relatives
from dualign.data.text.template import load_template
from dualign.errors import TemplateError
from dualign.models.source import ModelSource
from dualign.models.tokenizer import load_tokenizer
from tests.data.encode import render_row

FOLDER = Path(trl.__file__).parent / "chat_templates"
R1 = (FOLDER / "deepseek_r1_distill.jinja").read_text()
NAME = "trl:deepseek_r1_distill_training"
BAR = "\uff5c"
END, USER, ASSISTANT = (
    f"<{BAR}{name}{BAR}>" for name in ("end\u2581of\u2581sentence", "User", "Assistant")
)


def conversation(thinking: str | None) -> Conversation:
    answer = Message(role="assistant", content="It is 4.", thinking=thinking)
    return Conversation(
        messages=(Message(role="user", content="2 + 2?"), answer),
        mode="think" if thinking else "no_think",
        source="rows",
        row=0,
    )


@pytest.fixture
def folder(llama_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A tokenizer as the distills of R1 have it."""
    used = copy.deepcopy(llama_tokenizer)
    tokens = (END, USER, ASSISTANT)
    used.add_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    used.eos_token, used.chat_template = END, R1
    used.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_refusal_names_the_template_that_trains_the_row() -> None:
    template = load_template(str(FOLDER / "deepseek_r1_distill.jinja"))
    with pytest.raises(TemplateError, match=rf"can't be told.* Or use {NAME}, .*: it asks alike\."):
        render_row(template, conversation("Two and two"), "assistant")
    with pytest.raises(TemplateError) as refusal:
        render_row(template, conversation(None), "assistant")
    assert "trl:" not in str(refusal.value), "it doesn't train rows without a trace"


def test_a_later_revision_is_offered_too() -> None:
    """Gemma 4's first templates print the trace of calls alone."""
    for name in ("gemma4", "gemma4_v3"):
        template = load_template(str(FOLDER / f"{name}.jinja"))
        with pytest.raises(TemplateError, match=r"leaves out the trace.* Or use trl:gemma4_v5, "):
            render_row(template, conversation("Two and two"), "assistant")
    later = load_template("trl:gemma4_v5")
    rendered = render_row(later, conversation("Two and two"), "assistant")
    ((start, stop),) = rendered.spans
    assert rendered.text[start:stop] == (
        "<|channel>thought\nTwo and two\n<channel|>It is 4.<turn|>"
    )


def test_it_trains_the_trace_and_the_checkpoint_keeps_the_model_s_own_template(
    folder: Path, tmp_path: Path
) -> None:
    used, template = load_tokenizer(ModelSource(base=str(folder)), NAME, {})
    rendered = render_row(template, conversation("Two and two"), "assistant")
    ((start, stop),) = rendered.spans
    assert rendered.text[:start].endswith(f"2 + 2?{ASSISTANT}<think>\n")
    assert rendered.text[start:stop] == f"Two and two\n</think>\n\nIt is 4.{END}"
    used.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.chat_template == R1
    asked = saved.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}], add_generation_prompt=True, tokenize=False
    )
    assert asked == rendered.text[:start]


def test_a_template_that_asks_otherwise_is_saved(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(R1.replace("<think>\\n", ""), encoding="utf-8")
    used, template = load_tokenizer(ModelSource(base=str(folder)), NAME, {})
    assert used.chat_template == template.text == (FOLDER / f"{NAME[4:]}.jinja").read_text()


def test_names_are_found_without_importing_trl() -> None:
    assert relatives(R1 + "\n") == [NAME]
    assert relatives("other") == []
    assert is_relative(R1, NAME)
    assert not is_relative(R1, "trl:qwen3_training") and not is_relative(R1, "dualign")
    with pytest.raises(TemplateError, match=r"did you mean trl:qwen3_training\?"):
        load_template("trl:qwen3_trainin")
