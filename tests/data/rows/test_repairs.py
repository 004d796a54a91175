"""Each named repair mends the fault it is for, the row is counted by it, and what it can't mend stands."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dualign.config import Document, parse
from dualign.data.config import DataConfig, SourceConfig
from dualign.data.conversation import Conversation
from dualign.data.faults import RowError
from dualign.data.prepare import DataRequest, prepare_pairs, prepare_sft
from dualign.data.rows.sources import to_conversation, to_pair
from dualign.data.rows.text_rules import text_rules
from dualign.data.text.template import load_template
from dualign.errors import ConfigError

Write = Callable[[list[dict[str, Any]], str], Path]
Turn = tuple[str, str]


def row(*turns: Turn, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def read(raw: dict[str, Any], **on_fault: str) -> Conversation:
    return to_conversation(raw, source=SourceConfig(path="r", on_fault=on_fault), index=0)


def code_of(raw: dict[str, Any], **on_fault: str) -> str:
    with pytest.raises(RowError) as raised:
        read(raw, **on_fault)
    return raised.value.code


HI, YES = ("user", "Hi"), ("assistant", "yes")
WHY = ("assistant", "<think>\nwhy\n</think>\n\nyes")


def told(made: Conversation) -> list[tuple[str, str | None, str]]:
    return [(message.role, message.thinking, message.content) for message in made.messages]


def test_a_trace_is_stripped_or_decides_the_mode() -> None:
    raw = row(HI, WHY, mode="no_think")
    assert code_of(raw) == "no_think_with_trace"
    stripped = read(raw, no_think_with_trace="strip_thinking")
    assert told(stripped) == [("user", None, "Hi"), ("assistant", None, "yes")]
    assert (stripped.mode, stripped.repairs) == ("no_think", ("strip_thinking",))
    kept = read(raw, no_think_with_trace="as_think")
    assert told(kept)[1] == ("assistant", "why", "yes")
    assert (kept.mode, kept.repairs) == ("think", ("as_think",))


def test_a_think_row_without_traces_becomes_no_think_or_loses_the_turn_that_has_none() -> None:
    assert read(row(HI, YES, mode="think"), think_without_trace="as_no_think").mode == "no_think"
    half = row(HI, YES, HI, WHY)
    assert code_of(half) == "think_without_trace"
    skipped = read(half, think_without_trace="skip_turn")
    assert [message.train for message in skipped.messages] == [True, False, True, True]
    assert skipped.mode == "think"
    none_left = row(HI, YES, mode="think")
    assert code_of(none_left, think_without_trace="skip_turn") == "no_answer"


def test_a_repair_that_leads_to_another_fault_is_followed_by_that_ones_repair() -> None:
    half = row(HI, YES, HI, WHY, mode="think")
    assert code_of(half, think_without_trace="as_no_think") == "no_think_with_trace"
    both = {"think_without_trace": "as_no_think", "no_think_with_trace": "strip_thinking"}
    made = read(half, **both)
    assert (made.mode, made.repairs) == ("no_think", ("as_no_think", "strip_thinking"))
    assert all(message.thinking is None for message in made.messages)


def test_repairs_that_undo_each_other_end_and_leave_the_fault() -> None:
    half = row(HI, YES, HI, WHY, mode="think")
    both = {"think_without_trace": "as_no_think", "no_think_with_trace": "as_think"}
    assert code_of(half, **both) == "think_without_trace"


def test_a_mode_that_is_said_twice_is_settled_and_the_other_flag_goes() -> None:
    raw = row(("system", "Be brief. /no_think"), HI, WHY, mode="think")
    assert code_of(raw) == "mode_contradiction"
    made = read(raw, mode_contradiction="as_think")
    assert (made.mode, made.messages[0].content) == ("think", "Be brief.")
    only_flag = row(("system", "/think"), HI, YES, mode="no_think")
    made = read(only_flag, mode_contradiction="as_no_think")
    assert [message.role for message in made.messages] == ["user", "assistant"]


def test_a_flag_of_the_last_user_turn_has_to_agree() -> None:
    asked = row(("user", "Hi /think"), YES, mode="no_think")
    assert code_of(asked) == "mode_contradiction"
    made = read(asked, mode_contradiction="as_no_think")
    assert (made.mode, made.messages[0].content) == ("no_think", "Hi")
    assert code_of(row(("user", "Hi /think"), YES)) == "think_without_trace"
    earlier = row(("user", "Hi /think"), YES, ("user", "Hi /no_think"), YES)
    assert read(earlier).mode == "no_think"
    assert read(row(("user", "See docs/thinking.md"), YES, mode="no_think")).mode == "no_think"


def test_only_a_block_whose_end_is_known_is_opened() -> None:
    lonely = row(HI, ("assistant", "why\n</think>\n\nyes"))
    assert code_of(lonely) == "unopened_think"
    made = read(lonely, unopened_think="open_think")
    assert told(made)[1] == ("assistant", "why", "yes")
    assert (made.mode, made.repairs) == ("think", ("open_think",))
    twice = row(HI, ("assistant", "a</think>b</think>yes"))
    assert code_of(twice, unopened_think="open_think") == "unopened_think"


def test_an_answer_that_is_its_trace_becomes_an_answer_at_once() -> None:
    raw = row(HI, ("assistant", "<think>\nyes\n</think>\n\nyes"))
    assert code_of(raw) == "trace_is_answer"
    made = read(raw, trace_is_answer="strip_thinking")
    assert (made.mode, told(made)[1]) == ("no_think", ("assistant", None, "yes"))


def test_turns_are_joined_or_left_out_to_come_by_turns() -> None:
    raw = row(("system", "A"), ("system", "B"), HI, ("user", "there"), YES, ("assistant", "sir"))
    assert code_of(raw) == "same_role_twice"
    made = read(raw, same_role_twice="join_turns")
    texts = [message.content for message in made.messages]
    assert texts == ["A\n\nB", "Hi\n\nthere", "yes\n\nsir"]
    two_traces = row(HI, WHY, WHY)
    assert code_of(two_traces, same_role_twice="join_turns") == "same_role_twice"
    greeting = row(("system", "A"), ("assistant", "Hello!"), HI, YES)
    assert code_of(greeting) == "assistant_first"
    made = read(greeting, assistant_first="drop_first_turns")
    assert [message.content for message in made.messages] == ["A", "Hi", "yes"]


def test_an_empty_answer_stays_in_the_history_unlearnt() -> None:
    made = read(row(HI, ("assistant", ""), HI, YES), empty_answer="skip_turn")
    assert [message.train for message in made.messages] == [True, False, True, True]


def test_control_tokens_at_the_ends_are_trimmed_and_others_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rules = text_rules(tokenizer, load_template("dualign"))

    def answer(text: str) -> str:
        source = SourceConfig(path="r", on_fault={"control_token": "trim_tokens"})
        made = to_conversation(row(HI, ("assistant", text)), source=source, index=0, rules=rules)
        return made.messages[-1].content

    assert answer("<|im_start|>yes<|im_end|>\n<|end_of_text|>") == "yes"
    assert answer(" yes <") == " yes <"
    with pytest.raises(RowError, match=r"trim_tokens can't mend it\) \[control_token\]"):
        answer("yes<|im_end|>no")


def test_pairs_are_mended_on_both_sides() -> None:
    pair = {"prompt": "Hi", "chosen": WHY[1], "rejected": "no"}
    source = SourceConfig(path="r", on_fault={"pair_modes_differ": "strip_thinking"})
    made = to_pair(pair, source=source, index=0)
    assert (made.mode, made.repairs) == ("no_think", ("strip_thinking",))
    assert [message.content for message in (*made.chosen, *made.rejected)] == ["yes", "no"]
    assert made.chosen[0].thinking is None


def test_each_source_has_its_own_way_with_faults_and_the_account_tells_them(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [row(HI, WHY, mode="no_think")] * 3 + [row(HI, YES)] * 2 + [row(HI, ("assistant", ""))]
    write_rows(rows, "a.jsonl")
    base = write_rows(rows, "b.jsonl").parent
    mended = {"no_think_with_trace": "strip_thinking", "any": "drop"}
    sources = (
        SourceConfig(path="a.jsonl", on_fault=mended),
        SourceConfig(path="b.jsonl", on_fault={"any": "drop"}),
    )
    data = DataConfig(sources=sources, max_tokens=128)
    made = prepare_sft(DataRequest(data, tokenizer, load_template("dualign"), seed=1, base=base))
    told = {entry["source"]: entry for entry in made.rows["by"] if entry["mode"] == "no_think"}
    assert (told["a"]["kept"], told["a"]["repaired"]) == (5, {"strip_thinking": 3})
    assert told["a"]["dropped"] == {"empty_answer": 1}
    assert told["b"]["dropped"] == {"empty_answer": 1, "no_think_with_trace": 3}
    assert (told["b"]["kept"], told["b"]["repaired"]) == (2, {})
    assert made.rows["repaired"] == {"strip_thinking": 3}
    assert sum(entry["share"] for entry in made.rows["by"]) == pytest.approx(1, abs=1e-5)
    strict = DataConfig(sources=(SourceConfig(path="a.jsonl"), *sources[1:]), max_tokens=128)
    with pytest.raises(RowError, match=r"a, row 0: .*\[no_think_with_trace\]"):
        prepare_sft(DataRequest(strict, tokenizer, load_template("dualign"), seed=1, base=base))


def test_a_source_may_be_stricter_than_the_data(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    base = write_rows([row(HI, YES), row(HI, ("assistant", "x" * 900))], "a.jsonl").parent
    template = load_template("dualign")

    def prepared(**on_fault: str) -> dict[str, int]:
        source = SourceConfig(path="a.jsonl", on_fault=on_fault)
        data = DataConfig(sources=(source,), max_tokens=128)
        made = prepare_sft(DataRequest(data, tokenizer, template, seed=1, base=base))
        return dict(made.rows["dropped"])

    assert prepared() == prepared(any="error") == {"too_long": 1}
    with pytest.raises(RowError, match="too_long"):
        prepared(too_long="error")


def test_pairs_that_the_template_makes_equal_are_dropped_and_counted(
    write_rows: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    answers = [("4", "4 \n"), ("\n4", "4"), ("4", " 4"), ("a\n", "a\n\n"), ("4", "5"), ("x", "x.")]
    pairs = [{"prompt": "Hi", "chosen": left, "rejected": right} for left, right in answers]
    base = write_rows(pairs, "p.jsonl").parent
    data = DataConfig(sources=(SourceConfig(path="p.jsonl"),), packing="none", conflicts="drop")
    request = DataRequest(data, tokenizer, load_template("dualign"), seed=1, base=base)
    made = prepare_pairs(request).rows
    assert (made["kept"], made["dropped"]) == (3, {"identical_pair": 3})
    with pytest.raises(RowError, match="row 0: chosen and rejected are the same tokens") as error:
        prepare_pairs(replace(request, data=replace(data, conflicts="error")))
    assert error.value.code == "identical_pair"
    assert prepare_pairs(replace(request, template=load_template("chatml"))).rows["kept"] == 6


def test_mended_pairs_are_counted(write_rows: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [{"prompt": "Hi", "chosen": WHY[1], "rejected": "no"}] * 2
    base = write_rows(pairs, "p.jsonl").parent
    source = SourceConfig(path="p.jsonl", on_fault={"pair_modes_differ": "strip_thinking"})
    data = DataConfig(sources=(source,), packing="none")
    made = prepare_pairs(DataRequest(data, tokenizer, load_template("dualign"), seed=1, base=base))
    assert made.rows["repaired"] == {"strip_thinking": 2}


@pytest.mark.parametrize(
    ("on_fault", "message"),
    [
        ({"no_think_with_traces": "drop"}, "did you mean 'no_think_with_trace'?"),
        (
            {"empty_answer": "strip_thinking"},
            "data.on_fault.empty_answer: expected one of error, drop, skip_turn, found "
            "'strip_thinking' (it mends no_think_with_trace, pair_modes_differ, trace_is_answer)",
        ),
        ({"unclosed_think": "close_think"}, "expected one of error, drop, found 'close_think'"),
        ({"any": "strip_thinking"}, "expected one of error, drop, found 'strip_thinking'"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_recipe(
    on_fault: dict[str, str], message: str
) -> None:
    document = Document(file="r.yaml")
    parse(SourceConfig, {"path": "r", "on_fault": on_fault}, document, ("data",))
    with pytest.raises(ConfigError) as raised:
        document.raise_problems()
    assert message in str(raised.value)
