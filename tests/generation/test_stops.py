"""Stop strings end an answer, and nothing else."""

import pytest

from dualign.generation.generate import generate
from dualign.generation.sampling import Sampling
from dualign.generation.stops import Stops
from dualign.generation.thinking import TAGS, TraceMarks
from tests.chat_model import fit, make_model, make_tokenizer, prompt, taught_row

OPENED, PLAIN = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n"
CASES = [
    # prompt, generated, stops, what is kept (None: all)
    (PLAIN, "4\nQ: 3+3", ("Q:",), "4\n"),
    (PLAIN, "4", ("Q:",), None),
    (PLAIN, "ab. c", ("c", ". "), "ab"),
    (PLAIN, "\n\n4", ("\n\n",), ""),
    (PLAIN, "4 Q: 5", ("", "Q:"), "4 "),
    (PLAIN, "4 Q: 5", ("",), None),
    (PLAIN, "4 (a+b)", ("a+b",), "4 ("),
    (OPENED, "is Q: next?</think>\n\n4\nQ: 3+3", ("Q:",), "is Q: next?</think>\n\n4\n"),
    (OPENED, "is Q: next? Q:", ("Q:",), None),
    (OPENED, "hm\n\nso</think>\n\n4\n\nmore", ("\n\n",), "hm\n\nso</think>\n\n4"),
    (OPENED, "<think>a Q:</think>4", ("Q:",), None),
    (PLAIN, "<think>a Q: b</think>\n4 Q:", ("Q:",), "<think>a Q: b</think>\n4 "),
    (PLAIN, "<think>\n\n</think>\n\n4\n\n5", ("\n\n",), "<think>\n\n</think>\n\n4"),
    (PLAIN, "4 <think>Q:</think> 5 Q: 6", ("Q:",), "4 <think>Q:</think> 5 "),
    (PLAIN + "<think>\n\n</think>\n\n", "4\n\n5", ("\n\n",), "4"),
    (PLAIN + "<think>\n\n</think>", "\n\n4\n\n5", ("\n\n",), "\n\n4"),
]


@pytest.mark.parametrize(("before", "generated", "stops", "kept"), CASES)
def test_the_answer_ends_at_its_first_stop(before, generated, stops, kept):
    cut = Stops(stops, TAGS).cut(before, generated)
    assert (None if cut is None else generated[:cut]) == kept


def test_a_family_has_marks_of_its_own():
    marks = TraceMarks(head="<|c|>analysis", closing="<|c|>final", answer_head="<|c|>final")
    stops = Stops(("Q:",), marks)
    assert stops.cut("...<|c|>analysis", "Q: is that<|c|>final4 Q:") == 22
    assert stops.cut("...", "<|c|>analysis Q: <|c|>final4 Q:") == 29
    assert stops.cut("...", "<|c|>final4 Q:") == 12


@pytest.fixture(scope="module")
def talker():
    """A model that says `stop` in its trace and twice in its answer."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = [
        taught_row(tokenizer, "go?", mode, said)
        for mode, said in (("think", "a stop b</think>\n\nc stop d stop"), ("no_think", "e stop f"))
    ]
    assert fit(model, rows, 300, 0.005) < 0.02
    return model, tokenizer


def test_a_stop_in_a_trace_ends_nothing(talker):
    model, tokenizer = talker
    prompts = [prompt(tokenizer, "go?", mode) for mode in ("think", "no_think")]
    plain = generate(model, tokenizer, prompts, Sampling(max_new_tokens=48))
    assert [each.text for each in plain] == ["a stop b</think>\n\nc stop d stop", "e stop f"]
    sampling = Sampling(max_new_tokens=48, stop=("stop", "never"))
    cut = generate(model, tokenizer, prompts, sampling)
    assert [each.text for each in cut] == ["a stop b</think>\n\nc ", "e "]
    assert all(each.finished for each in cut)
    # The tokens end with the one that completed the stop, and no other row was waited for.
    assert [tokenizer.decode(each.token_ids) for each in cut] == [
        "a stop b</think>\n\nc stop", "e stop",
    ]  # fmt: skip


def test_a_limit_before_the_stop_leaves_the_answer_cut(talker):
    model, tokenizer = talker
    prompts = [prompt(tokenizer, "go?", "think")]
    (cut,) = generate(model, tokenizer, prompts, Sampling(max_new_tokens=10, stop=("stop",)))
    assert (cut.text, cut.finished) == ("a stop b</think>\n", False)
