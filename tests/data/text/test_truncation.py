"""Rows that are too long lose whole turns or their end, and traces are cut at a budget; all counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import PreTrainedTokenizerFast

from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import Conversation, Message
from dualign.data.faults import RowError
from dualign.data.prepare import DataRequest, SFTData, prepare_sft
from dualign.data.text.template import load_template
from dualign.data.text.truncation import without_first_turns
from dualign.data.tokens.labels import IGNORE_INDEX
from tests.data.encode import encode, render_row

Write = Callable[[list[dict[str, Any]], str], Path]


def chat(*turns: tuple[str, str], think: bool = False) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be brief."}]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        trace = "<think>\nI count the apples one by one\n</think>\n\n" if think else ""
        messages.append({"role": "assistant", "content": trace + answer})
    return {"messages": messages}


def prepared(
    path: Path, tokenizer: PreTrainedTokenizerFast, name: str = "dualign", **data: Any
) -> SFTData:
    source = SourceConfig(path=str(path), thinking_budget=data.pop("thinking_budget", None))
    config = DataConfig(sources=(source,), packing="none", **data)
    return prepare_sft(
        DataRequest(config, tokenizer, load_template(name, tokenizer=tokenizer), seed=0)
    )


def texts(made: SFTData, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    found = []
    for row in made.train:
        learnt = [label for label in row["labels"] if label != IGNORE_INDEX]
        found.append((tokenizer.decode(row["input_ids"]), tokenizer.decode(learnt)))
    return sorted(found)


def test_cut_history_drops_whole_turns_from_the_front_and_keeps_the_system_text(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = chat(("a " * 40, "long ago"), ("b " * 40, "later"), ("now?", "yes"))
    path = write_rows([row, chat(("hi", "ho"))], "a.jsonl")
    made = prepared(path, tokenizer, max_tokens=70, too_long="cut_history")
    long, short = sorted(texts(made, tokenizer), key=lambda item: -len(item[0]))
    assert long[0].startswith("<|im_start|>system\nBe brief.\n\n/no_think<|im_end|>\n")
    assert "now?" in long[0] and "long ago" not in long[0]
    assert long[1] in ("yes<|im_end|>", "later<|im_end|>yes<|im_end|>")
    assert short[1] == "ho<|im_end|>"
    assert made.rows["repaired"] == {"cut_history": 1}
    assert (made.rows["in"], made.rows["kept"], made.rows["dropped"]) == (2, 2, {})


def test_a_last_turn_that_is_too_long_by_itself_is_dropped(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows([chat(("q", "a"), ("x " * 100, "y")), chat(("hi", "ho"))], "a.jsonl")
    made = prepared(path, tokenizer, max_tokens=70, too_long="cut_history")
    assert made.rows["dropped"] == {"too_long": 1}


def test_turns_before_the_first_question_go_with_it() -> None:
    messages = [
        Message(role="system", content="s"),
        Message(role="user", content="a"),
        Message(role="assistant", content="", tool_calls=({"name": "f"},)),
        Message(role="tool", content="r"),
        Message(role="assistant", content="b"),
        Message(role="user", content="c"),
        Message(role="assistant", content="d", train=False),
    ]
    row = Conversation(messages=tuple(messages), mode="no_think", source="rows", row=0)
    assert without_first_turns(row) is None, "nothing supervised would be left"
    trained = [*messages[:-1], Message(role="assistant", content="d")]
    row = Conversation(messages=tuple(trained), mode="no_think", source="rows", row=0)
    left = without_first_turns(row)
    assert left is not None and [m.content for m in left.messages] == ["s", "c", "d"]


def test_cut_end_cuts_an_answer_but_not_a_trace(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows([chat(("hi", "ho " * 60)), chat(("hi", "yes"), think=True)], "a.jsonl")
    whole = prepared(path, tokenizer, max_tokens=2048)
    sizes = sorted(sum(row["seq_lengths"]) for row in whole.train)
    for limit in range(sizes[0] - 1, sizes[0] - 40, -1):
        made = prepared(path, tokenizer, max_tokens=limit, too_long="cut_end")
        kept = texts(made, tokenizer)
        assert all(sum(row["seq_lengths"]) == limit for row in made.train)
        think = [learnt for text, learnt in kept if "/think<" in text]
        assert all("</think>\n\n" in learnt for learnt in think), "the cut is after the trace"
        assert made.rows["kept"] + sum(made.rows["dropped"].values()) == 2
        if not think:
            assert made.rows["dropped"] == {"too_long": 1}
            assert made.rows["repaired"] == {"cut_end": 1}
            break
    else:
        pytest.fail("no cut came near the trace")
    made = prepared(path, tokenizer, max_tokens=limit, too_long="cut_end_in_thinking")
    assert made.rows["repaired"] == {"cut_end_in_thinking": 2}


def test_a_cut_that_leaves_nothing_to_learn_is_dropped(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_rows([chat(("why " * 60, "so")), chat(("hi", "ho"))], "a.jsonl")
    made = prepared(path, tokenizer, max_tokens=60, too_long="cut_end")
    assert made.rows["dropped"] == {"too_long": 1}
    with pytest.raises(RowError, match="too_long"):
        prepared(path, tokenizer, max_tokens=60, too_long="error")


@pytest.mark.parametrize("name", ["dualign", "chatml", "smollm3-training"])
@pytest.mark.parametrize("gpt2", [True, False])
def test_a_thinking_budget_trains_the_answer_alone(
    write_rows: Write,
    tokenizer: PreTrainedTokenizerFast,
    llama_tokenizer: PreTrainedTokenizerFast,
    name: str,
    gpt2: bool,
) -> None:
    used = tokenizer if gpt2 else llama_tokenizer
    row = chat(("How many?", "Seven."), think=True)
    path = write_rows([row, row | {"mode": "think"}], "a.jsonl")
    made = prepared(path, used, name, max_tokens=2048, thinking_budget=12)
    assert made.rows["repaired"] == {"thinking_budget": 2}
    for text, learnt in texts(made, used):
        assert learnt == "Seven.<|im_end|>", "the model isn't to close its traces early by itself"
        trace = text.split("<think>\n")[1].split("\n</think>")[0]
        assert "I count the apples one by one".startswith(trace) and trace
        assert len(used(trace)["input_ids"]) <= 12
    roomy = prepared(path, used, name, max_tokens=2048, thinking_budget=500)
    assert roomy.rows["repaired"] == {}
    assert all("one by one\n</think>" in learnt for _, learnt in texts(roomy, used))


def test_a_conversation_that_a_template_splits_is_one_row_of_several_documents(
    write_rows: Write, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    qwen3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    rows = [chat(("one?", "1"), ("two?", "2"), ("three?", "3"), think=True)] * 3
    path = write_rows([row | {"id": at} for at, row in enumerate(rows)], "a.jsonl")
    for packing in ("best_fit", "wrapped", "none"):
        data = DataConfig(
            sources=(SourceConfig(path=str(path)),),
            max_tokens=512,
            packing=packing,  # type: ignore[arg-type]
            validation_rows=1,
        )
        template = load_template(str(qwen3), tokenizer=llama_tokenizer)
        made = prepare_sft(DataRequest(data, llama_tokenizer, template, seed=0))
        assert (made.rows["kept"], made.rows["examples"], made.rows["validation"]) == (3, 2, 1)
        assert made.rows["repaired"] == {"split_history": 3}
        assert sum(sum(row["seq_lengths"]) for row in made.train) == made.rows["tokens"]
        if packing == "wrapped":
            continue
        assert made.validation is not None
        assert sum(len(row["seq_lengths"]) for row in made.train) == 6
        assert sum(len(row["seq_lengths"]) for row in made.validation) == 3
        for row in made.train:
            start = 0
            for length in row["seq_lengths"]:
                text = llama_tokenizer.decode(row["input_ids"][start : start + length])
                assert text.count("I count") == 1, "old thoughts are dropped"
                start += length


def test_encode_alone_cuts_as_the_recipe_does(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = (Message(role="user", content="hi"), Message(role="assistant", content="ho " * 9))
    row = Conversation(messages=messages, mode="no_think", source="rows", row=0)
    rendered = render_row(load_template("dualign"), row, "assistant")
    whole = encode(rendered, tokenizer, max_tokens=None)
    size = len(whole.input_ids) - 3
    made = encode(rendered, tokenizer, max_tokens=size, too_long="cut_end")
    assert (made.input_ids, made.labels) == (whole.input_ids[:size], whole.labels[:size])
