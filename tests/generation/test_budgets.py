"""Traces that are closed at a budget: the tokens, what is asked again, what is counted."""

import json
from pathlib import Path

import pytest
import torch
import trl
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from dualign.errors import EvaluationError
from dualign.generation.answers import Prompt, ask, budgeted, sample_request
from dualign.generation.budgets import Budget, TraceCutter
from dualign.generation.config import Endpoint
from dualign.generation.endpoint import EndpointResponder
from dualign.generation.responders import open_responder
from dualign.generation.samples import AnswerRecord, SampleFile
from dualign.generation.sampling import Sampling
from dualign.generation.speakers import _BudgetSpent as BudgetSpent
from dualign.generation.wire import with_budget
from dualign.models.tokenizer import load_chat_tokenizer
from tests.chat_model import LEARNT
from tests.doctor.test_trials import tokenizer_for

CLOSING = "\n</think>\n\n"


def opened(learnt):
    return open_responder(
        str(learnt), backend="transformers", dtype="float32", batch_tokens=2000, label="tiny"
    )


def whole_requests(responder, limit=40, temperature=0.0):
    sampling = Sampling(max_new_tokens=limit, temperature=temperature)
    asked = [[{"role": "user", "content": f"What is {question}?"}] for question in LEARNT]
    prompts = [responder.prompt(messages, "think", None) for messages in asked]
    return [sample_request(prompt, sampling, 0, "tiny") for prompt in prompts]


class _CloseAt(LogitsProcessor):
    """Force the closing after so many tokens, as a server does while it writes."""

    def __init__(self, start, budget, closing):
        self.start, self.budget, self.closing = start, budget, closing

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.start - self.budget
        if not 0 <= step < len(self.closing):
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.closing[step]] = 0.0
        return forced


@pytest.mark.parametrize("tokens", [0, 1, 4, 9])
def test_a_trace_is_closed_at_just_that_token_as_if_while_it_was_written(learnt, tmp_path, tokens):
    responder = opened(learnt)
    requests = whole_requests(responder)
    cut = [budgeted(each, Budget(tokens=tokens), answer_tokens=12) for each in requests]
    answers = ask(responder, cut, SampleFile(tmp_path / "a.jsonl"))
    model, tokenizer = responder.subject.weights(), responder.subject.tokenizer
    closing = tokenizer(CLOSING, add_special_tokens=False)["input_ids"]
    settings = GenerationConfig(
        max_new_tokens=tokens + len(closing) + 12, do_sample=False, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    for request, answer in zip(requests, answers, strict=True):
        ids = tokenizer(request.prompt.text, add_special_tokens=False, return_tensors="pt")
        start = ids["input_ids"].shape[1]
        forced = LogitsProcessorList([_CloseAt(start, tokens, closing)])
        output = model.generate(**ids, generation_config=settings, logits_processor=forced)[0]
        expected = tokenizer.decode(output[start:]).removesuffix("<|im_end|>")
        assert answer.generated == expected
        assert answer.generated[tokens:].startswith(CLOSING)  # one letter is one token
        assert (answer.think_tokens, answer.budget, answer.closed_by_budget) == (
            tokens,
            tokens,
            True,
        )
        assert answer.reply.closed and not answer.reply.cut_in_think


def test_one_trace_serves_all_budgets_and_longer_ones_share_its_answer(learnt, tmp_path, generated):
    responder = opened(learnt)
    whole = whole_requests(responder)
    limits = [0, 5, 11, 500]  # the traces have 11, 10, 12 and 12 tokens
    cut = [[budgeted(w, Budget(tokens=n), answer_tokens=6) for w in whole] for n in limits]
    file = SampleFile(tmp_path / "a.jsonl")
    full = ask(responder, whole, file)
    assert generated["prompts"] == 4
    by_budget = [ask(responder, requests, file) for requests in cut]
    assert [[a.closed_by_budget for a in answers] for answers in by_budget] == [
        [True] * 4, [True] * 4, [False, False, True, True], [False] * 4,
    ]  # fmt: skip
    assert by_budget[3] == full
    assert by_budget[2][:2] == full[:2]
    assert generated["prompts"] == 4 + 4 + 4 + 2
    written = [a.generated for a in full]
    written += [
        a.generated.split(CLOSING, 1)[1]
        for answers in by_budget
        for a in answers
        if a.closed_by_budget
    ]
    ids = responder.subject.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert generated["tokens"] == sum(map(len, ids))


def test_what_is_on_the_disk_is_not_asked_again(learnt, tmp_path, generated):
    requests = []
    for whole in whole_requests(opened(learnt)):
        requests += [whole, *(budgeted(whole, Budget(tokens=n), answer_tokens=6) for n in (0, 5))]
    file = tmp_path / "a.jsonl"
    answers = ask(opened(learnt), requests, SampleFile(file))
    assert generated["prompts"] == 12
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    assert sum("token_ids" in json.loads(line) for line in lines) == 4
    file.write_text("".join(lines[:6]), encoding="utf-8")  # the traces, and two of the others
    assert ask(opened(learnt), requests, SampleFile(file)) == answers
    assert generated["prompts"] == 12 + 6


def test_words_of_a_recipe_close_the_trace_and_the_template_adds_what_they_lack(learnt, tmp_path):
    responder = opened(learnt)
    whole = whole_requests(responder)[0]
    said = [
        budgeted(whole, Budget(tokens=3, closing=text), answer_tokens=5)
        for text in (" Enough.", " Stop.\n</think>", None)
    ]
    answers = ask(responder, said, SampleFile(tmp_path / "a.jsonl"))
    assert answers[0].generated.startswith("one Enough.\n</think>\n\n")
    assert answers[1].generated.startswith("one Stop.\n</think>")
    assert answers[2].generated.startswith("one\n</think>\n\n")
    assert [answer.think_tokens for answer in answers] == [3, 3, 3]


def test_samples_at_a_budget_have_draws_of_their_own(learnt):
    (whole, *_) = whole_requests(opened(learnt), temperature=1.0)
    early, later = (budgeted(whole, Budget(tokens=n), answer_tokens=6) for n in (1, 2))
    assert len({whole.seed, early.seed, later.seed}) == 3
    assert len({whole.key, early.key, later.key}) == 3


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("one two\n</think>\n3", 7),
        ("one two", 7),
        ("\u20ac\u20ac</think>3", 6),
        ("\n\n</think>3", 0),
        ("", 0),
    ],
)
def test_the_tokens_of_a_trace_are_counted_without_the_space_around_it(learnt, written, expected):
    cutter = TraceCutter(load_chat_tokenizer(str(learnt)))
    assert cutter.trace("<|im_start|>assistant\n<think>\n", cutter.ids(written)) == (0, expected)
    start, length = cutter.trace("<|im_start|>assistant\n", cutter.ids(f"<think>\n{written}"))
    assert (start, length) == (2 if written and written[0] != "\n" else start, expected)
    assert cutter.trace("<|im_start|>assistant\n", cutter.ids("just 3")) == (0, 0)


def test_a_cut_inside_a_character_is_not_shown(learnt):
    cutter = TraceCutter(load_chat_tokenizer(str(learnt)))
    prompt = "<|im_start|>assistant\n<think>\n"
    closed = cutter.close(prompt, cutter.ids("a\u20acb"), Budget(tokens=2))
    assert (closed.kept, closed.closing) == ("a", CLOSING)
    assert closed.token_ids == (
        *cutter.ids(prompt),
        *cutter.ids("a\u20ac")[:2],
        *cutter.ids(CLOSING),
    )


def test_a_block_that_the_model_opens_itself_is_opened_for_a_budget_of_nothing(learnt):
    tokenizer = load_chat_tokenizer(str(learnt))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{%- set prefill = '<think>\\n' if", "{%- set prefill = '' if"
    )
    cutter, prompt = TraceCutter(tokenizer), "<|im_start|>assistant\n"
    assert cutter.close(prompt, (), Budget(tokens=0)).closing == f"<think>\n{CLOSING}"
    assert cutter.close(prompt, cutter.ids("no trace"), Budget(tokens=3)) is None
    closed = cutter.close(prompt, cutter.ids("<think>\nlong trace"), Budget(tokens=4))
    assert closed.kept + closed.closing == f"<think>\nlong{CLOSING}"


def test_a_server_closes_traces_by_a_field_of_its_own(learnt_server, tmp_path):
    endpoint = Endpoint(url=learnt_server, thinking_budget_field="thinking_budget_tokens")
    responder = EndpointResponder(endpoint, label="tiny")
    whole = whole_requests(responder)
    cut = [budgeted(each, Budget(tokens=4), answer_tokens=12) for each in whole]
    free = [budgeted(each, Budget(tokens=300), answer_tokens=12) for each in whole]
    file = SampleFile(tmp_path / "a.jsonl")
    full, early, shared = (ask(responder, requests, file) for requests in (whole, cut, free))
    assert [answer.reply.thinking for answer in full] == [
        thought for thought, _, _ in LEARNT.values()
    ]
    # It counts the new line after the tag as the first of them.
    assert [answer.reply.thinking for answer in early] == ["one", "fou", "two", "sev"]
    assert all(answer.closed_by_budget for answer in early)
    assert shared == full


def test_an_endpoint_without_that_field_refuses_a_budget():
    responder = EndpointResponder(Endpoint(url="http://127.0.0.1:9/v1", name="x"), label="x")
    (whole, *_) = whole_requests(responder)
    cut = budgeted(whole, Budget(tokens=4), answer_tokens=12)
    record = AnswerRecord(key="k", generated="", finished=True)
    with pytest.raises(EvaluationError, match="no thinking_budget_field"):
        responder.closed(cut, record)


def test_a_dotted_field_is_nested_and_keeps_its_neighbors():
    prompt = Prompt(text="", mode="think", messages=(), fields={"custom_params": {"a": 1}, "b": 2})
    fields = with_budget(prompt, "custom_params.thinking_budget", 7).fields
    assert fields == {"custom_params": {"a": 1, "thinking_budget": 7}, "b": 2}
    assert with_budget(prompt, "thinking_token_budget", 7).fields["thinking_token_budget"] == 7


def test_a_turn_that_ends_inside_its_trace_is_not_closed_in_a_chat(learnt):
    tokenizer = load_chat_tokenizer(str(learnt))
    cutter, prompt = TraceCutter(tokenizer), "<|im_start|>assistant\n<think>\n"
    start = cutter.ids(prompt)
    for text, spent in (
        ("abcd", True),
        ("abc", False),
        ("abc<|im_end|>", False),
        ("a</think>b", False),
    ):
        watch = BudgetSpent(
            cutter, prompt, len(start), Budget(tokens=4), frozenset({tokenizer.eos_token_id})
        )
        watch(torch.tensor([[*start, *cutter.ids(text)]]), None)
        assert watch.spent is spent, text


@pytest.mark.parametrize(
    ("family", "prompt", "head", "closing"),
    [
        ("qwen3", "assistant\n", "<think>\n", "\n</think>\n\n"),
        ("qwen3_6", "assistant\n<think>\n", "", "\n</think>\n\n"),
        ("nemotron_3_nano", "assistant\n<think>\n", "", "\n</think>\n"),
        (
            "gptoss",
            "<|start|>assistant",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        ("gemma4_v5", "model\n", "<|channel>thought\n", "\n<channel|>"),
    ],
)
def test_each_family_closes_traces_as_its_template_does(family, prompt, head, closing):
    text = (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").read_text("utf-8")
    tokenizer = tokenizer_for(text)
    tokenizer.chat_template = text
    cutter = TraceCutter(tokenizer)
    assert cutter.closing(Budget(tokens=1)) == closing
    nothing = cutter.close(prompt, (), Budget(tokens=0))
    assert nothing.kept + nothing.closing == head + closing
    written = cutter.ids(f"{head}one two{closing}3")
    start, length = cutter.trace(prompt, written)
    assert cutter.close(prompt, written, Budget(tokens=length)) is None
    cut = cutter.close(prompt, written, Budget(tokens=length - 1))
    assert cut.kept.startswith(head) and "one two".startswith(cut.kept[len(head) :].strip())
    assert cut.closing == closing and len(cut.kept) < len(f"{head}one two")
    assert cut.token_ids == (
        *cutter.ids(prompt),
        *written[: start + length - 1],
        *cutter.ids(closing),
    )
