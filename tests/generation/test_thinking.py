"""Hand-labelled generations: what is thinking, what is the answer, and what is wrong with the form."""

import pytest

from dualign.generation.thinking import split

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


def test_a_system_text_that_describes_the_tags_opens_no_block():
    prompt = "<|im_start|>system\nWrite <think> first.<|im_end|>\n<|im_start|>assistant\n"
    assert split(prompt, "4", mode="think", finished=True).answer == "4"
