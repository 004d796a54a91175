"""Hand-labelled generations: what is thinking, what is the answer, and what is wrong with the form."""

from pathlib import Path

import pytest
import trl

from dualign.generation.thinking import TAGS, ends_in_trace, split, trace_marks
from tests.data.text.test_turn_shapes import MINISTRAL
from tests.doctor.test_trials import tokenizer_for

OPENED = "<|im_start|>assistant\n<think>\n"
BARE = "<|im_start|>assistant\n"
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n"
ALL = frozenset({"closed", "leaked", "empty", "cut_in_think"})

# mode, prompt, generated, finished, thinking, answer, flags that are set
CASES = [
    # think mode, the block is opened by the prompt (dualign)
    ("think", OPENED, "2+2=4\n</think>\n\n4", True, "2+2=4", "4", "closed"),
    ("think", OPENED, "2+2=4</think>4", True, "2+2=4", "4", "closed"),
    ("think", OPENED, "a\nb\n</think>\n\nx\n\ny", True, "a\nb", "x\n\ny", "closed"),
    ("think", OPENED, "a\n</think>\n\nlong ans", False, "a", "long ans", "closed"),
    ("think", OPENED, "a\n</think>\n\n", True, "a", "", "closed"),
    ("think", OPENED, "a\n</think>", False, "a", "", "closed"),
    ("think", OPENED, "\n</think>\n\n4", True, "", "4", "closed empty"),
    ("think", OPENED, "</think>4", True, "", "4", "closed empty"),
    ("think", OPENED, "   \n\n</think>4", True, "", "4", "closed empty"),
    ("think", OPENED, "2+2 is", False, "2+2 is", "", "cut_in_think"),
    ("think", OPENED, "2+2 is 4", True, "2+2 is 4", "", ""),
    ("think", OPENED, "", True, "", "", "empty"),
    ("think", OPENED, "", False, "", "", "empty cut_in_think"),
    ("think", OPENED, "<think>\na\n</think>\n\n4", True, "a", "4", "closed leaked"),
    ("think", OPENED, "a <think> b\n</think>\n\n4", True, "a  b", "4", "closed leaked"),
    ("think", OPENED, "a\n</think>\n\n4 </think>", True, "a", "4", "closed leaked"),
    ("think", OPENED, "a\n</think>\n\n<think>b</think>4", True, "a", "4", "closed leaked"),
    ("think", OPENED, "a\n</think>\n\n4 <think>b", False, "a", "4", "closed leaked"),
    ("think", OPENED, "a\n</think>\n\nI think so", True, "a", "I think so", "closed"),
    ("think", OPENED, "x < think > y</think>4", True, "x  y", "4", "closed leaked"),
    ("think", OPENED, "a </thinking> 4", True, "a  4", "", "leaked"),
    ("think", OPENED, "a\n</think>\n\nif x < 3: think", True, "a", "if x < 3: think", "closed"),
    # think mode, the model opens the block itself (SmolLM3, Qwen3)
    ("think", BARE, "<think>\na\n</think>\n\n4", True, "a", "4", "closed"),
    ("think", BARE, "\n<think>a</think>4", True, "a", "4", "closed"),
    ("think", BARE, "<think>\n\n</think>\n\n4", True, "", "4", "closed empty"),
    ("think", BARE, "<think>\na", False, "a", "", "cut_in_think"),
    ("think", BARE, "<think>\na", True, "a", "", ""),
    ("think", BARE, "<think>", False, "", "", "empty cut_in_think"),
    ("think", BARE, "4", True, None, "4", "empty"),
    ("think", BARE, "The sum is", False, None, "The sum is", "empty"),
    ("think", BARE, "", True, None, "", "empty"),
    ("think", BARE, "Sure. <think>a</think> 4", True, "a", "Sure.  4", "leaked"),
    ("think", BARE, "a\n</think>\n\n4", True, "a", "4", "leaked"),
    ("think", BARE, "4 <think> hm", False, "hm", "4", "leaked"),
    ("think", BARE, "<think>a</think>4<think>b</think>", True, "a", "4", "closed leaked"),
    # no_think mode, the prompt holds an empty block (dualign, SmolLM3, Qwen3)
    ("no_think", CLOSED, "4", True, None, "4", ""),
    ("no_think", CLOSED, "\n\n4\n", True, None, "4", ""),
    ("no_think", CLOSED, "", True, None, "", ""),
    ("no_think", CLOSED, "The sum is", False, None, "The sum is", ""),
    ("no_think", CLOSED, "Let me think: 2+2=4", True, None, "Let me think: 2+2=4", ""),
    ("no_think", CLOSED, "<think>\na\n</think>\n\n4", True, "a", "4", "leaked"),
    ("no_think", CLOSED, "<think>\n\n</think>\n\n4", True, "", "4", "leaked"),
    ("no_think", CLOSED, "a\n</think>\n\n4", True, "a", "4", "leaked"),
    ("no_think", CLOSED, "<think>\na", False, "a", "", "leaked"),
    ("no_think", CLOSED, "4 <think>a</think>", True, "a", "4", "leaked"),
    ("no_think", CLOSED, "<thinking>a</thinking>4", True, None, "a4", "leaked"),
    ("no_think", CLOSED, "4</THINK>", True, None, "4", "leaked"),
    # no_think mode, no block in the prompt (ChatML)
    ("no_think", BARE, "4", True, None, "4", ""),
    ("no_think", BARE, "<think>\n\n</think>\n\n4", True, None, "4", ""),
    ("no_think", BARE, "<think>\na\n</think>\n\n4", True, "a", "4", "leaked"),
    ("no_think", BARE, "<think></think><think></think>4", True, "", "4", "leaked"),
]


@pytest.mark.parametrize(
    ("mode", "prompt", "generated", "finished", "thinking", "answer", "flags"), CASES
)
def test_a_labeled_generation(mode, prompt, generated, finished, thinking, answer, flags):
    parsed = split(prompt, generated, mode=mode, finished=finished)
    assert (parsed.thinking, parsed.answer) == (thinking, answer)
    assert {name for name in ALL if getattr(parsed, name)} == set(flags.split())


@pytest.mark.parametrize(
    ("mode", "prompt", "generated", "finished", "thinking", "answer", "flags"), CASES
)
def test_a_text_that_is_cut_in_its_trace_ends_in_it(
    mode, prompt, generated, finished, thinking, answer, flags
):
    if "cut_in_think" in flags:
        assert ends_in_trace(prompt, generated)


def test_a_trace_is_one_wherever_it_began():
    for prompt, text in ((CLOSED, "<think>\n2+2"), (BARE, "Sure. <think>2+2"), (OPENED, "2</thi")):
        assert ends_in_trace(prompt, text)
    for prompt, text in ((CLOSED, "It is 4"), (BARE, "<think>2</think>4"), (OPENED, "2</think>4")):
        assert not ends_in_trace(prompt, text)


def test_a_system_text_that_describes_the_tags_opens_no_block():
    prompt = "<|im_start|>system\nWrite <think> first.<|im_end|>\n<|im_start|>assistant\n"
    assert split(prompt, "4", mode="think", finished=True).answer == "4"


START, FINAL = "<|start|>assistant", "<|channel|>final<|message|>"
ANALYSIS, CLOSING = "<|channel|>analysis<|message|>", f"<|end|>{START}{FINAL}"
# family, mode, the end of the prompt, generated, finished, thinking, answer, flags that are set
OTHER_MARKS = [
    ("gptoss", "think", START, f"{ANALYSIS}a\nb{CLOSING}4", True, "a\nb", "4", "closed"),
    ("gptoss", "think", START, f"{ANALYSIS}a", False, "a", "", "cut_in_think"),
    ("gptoss", "think", START, f"{ANALYSIS}{CLOSING}4", True, "", "4", "closed empty"),
    ("gptoss", "think", START, f"{FINAL}4", True, None, "4", "empty"),
    ("gptoss", "think", START, f"{ANALYSIS}a{CLOSING}4{ANALYSIS}", True, "a", "4", "closed leaked"),
    ("gptoss", "no_think", START, f"{FINAL}4", True, None, "4", ""),
    ("gptoss", "no_think", START, f"{ANALYSIS}a{CLOSING}4", True, "a", "4", "leaked"),
    ("ministral", "think", "[/INST]", "[THINK]a[/THINK]4", True, "a", "4", "closed"),
    ("ministral", "think", "[/INST]", "[THINK]a", False, "a", "", "cut_in_think"),
    ("ministral", "think", "[/INST][THINK]", "a[/THINK]4", True, "a", "4", "closed"),
    ("ministral", "no_think", "[/INST]", "4", True, None, "4", ""),
    ("ministral", "no_think", "[/INST]", "[THINK]a[/THINK]4", True, "a", "4", "leaked"),
    (
        "gemma4_v5",
        "think",
        "model\n",
        "<|channel>thought\na\n<channel|>4",
        True,
        "a",
        "4",
        "closed",
    ),
    ("gemma4_v5", "no_think", "model\n", "4", True, None, "4", ""),
]


@pytest.mark.parametrize(
    ("family", "mode", "prompt", "generated", "finished", "thinking", "answer", "flags"),
    OTHER_MARKS,
)
def test_a_generation_in_the_marks_of_its_family(
    family, mode, prompt, generated, finished, thinking, answer, flags
):
    file = Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja"
    text = MINISTRAL if family == "ministral" else file.read_text(encoding="utf-8")
    tokenizer = tokenizer_for(text)
    tokenizer.chat_template = text
    marks = trace_marks(tokenizer)
    parsed = split(prompt, generated, mode=mode, finished=finished, marks=marks)
    assert (parsed.thinking, parsed.answer) == (thinking, answer)
    assert {name for name in ALL if getattr(parsed, name)} == set(flags.split())


@pytest.mark.parametrize("family", ["qwen3", "glm4moe", "qwen2_5", "lfm2_2_5", "deepseekv3"])
def test_think_tags_are_the_marks_of_most_families(family):
    text = (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text()
    tokenizer = tokenizer_for(text)
    tokenizer.chat_template = text
    assert trace_marks(tokenizer) == TAGS
