"""Generations don't depend on what they are batched with."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualign.errors import EvaluationError
from dualign.generation.generate import end_ids, generate, generate_batches
from dualign.generation.rounds import batches
from dualign.generation.row import Row
from dualign.generation.sampling import Sampling, choose, uniforms
from tests.chat_model import make_model, make_tokenizer

PROMPTS = [
    "a",
    "what is this?",
    "0123456789" * 4,
    "zz top",
    "A longer one, with several words.",
    "b",
]


@pytest.fixture(scope="module")
def tiny():
    """Random weights, and 40 end tokens, so that rows end at different lengths."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=3, width=32)
    model.generation_config.eos_token_id = list(range(0, 240, 6))
    return model, tokenizer


def slow_greedy(model, tokenizer, prompt, limit):
    """The independent slow version: no cache, no padding, one row."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ends, new = set(end_ids(model, tokenizer)), []
    for _ in range(limit):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in ends:
            return tuple(new), True
        new.append(token)
    return tuple(new), False


def test_greedy_batches_equal_row_by_row_decoding(tiny):
    model, tokenizer = tiny
    made = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=24))
    slow = [slow_greedy(model, tokenizer, prompt, 24) for prompt in PROMPTS]
    assert [(each.token_ids, each.finished) for each in made] == slow
    assert len({len(ids) for ids, _ in slow}) > 2, "rows have to end at different lengths"


def test_sampling_depends_on_the_rows_own_seed_alone(tiny):
    model, tokenizer = tiny
    sampling = Sampling(max_new_tokens=16, temperature=1.0, top_p=0.95)
    seeds = [11, 12, 13, 14, 15, 16]
    together = generate(model, tokenizer, PROMPTS, sampling, seeds)
    alone = [
        generate(model, tokenizer, [prompt], sampling, [seed])[0]
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    small = generate(model, tokenizer, PROMPTS, sampling, seeds, batch_tokens=90)
    assert together == alone == small


def test_another_seed_samples_another_text(tiny):
    model, tokenizer = tiny
    sampling = Sampling(max_new_tokens=16, temperature=1.5)
    first = generate(model, tokenizer, PROMPTS, sampling, 1)
    assert first == generate(model, tokenizer, PROMPTS, sampling, 1)
    assert first != generate(model, tokenizer, PROMPTS, sampling, 2)


def test_equal_prompts_get_different_samples(tiny):
    model, tokenizer = tiny
    made = generate(model, tokenizer, ["hm"] * 8, Sampling(max_new_tokens=12, temperature=1.5), 5)
    assert len({each.text for each in made}) > 4


def test_draws_follow_the_probabilities():
    scores = torch.tensor([0.5, 0.3, 0.2]).log().repeat(4000, 1)
    draws = [uniforms(seed, 1)[0] for seed in range(4000)]
    chosen = choose(scores, [Sampling(max_new_tokens=1, temperature=1.0)] * 4000, draws)
    share = torch.bincount(chosen, minlength=3) / 4000
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_top_p_leaves_out_the_tail():
    scores = torch.tensor([0.6, 0.3, 0.1]).log().repeat(500, 1)
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=0.8)
    draws = [uniforms(seed, 1)[0] for seed in range(500)]
    assert set(choose(scores, [sampling] * 500, draws).tolist()) == {0, 1}


def test_top_k_leaves_out_all_but_the_likeliest():
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(500, 1)
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_k=2)
    draws = [uniforms(seed, 1)[0] for seed in range(500)]
    assert set(choose(scores, [sampling] * 500, draws).tolist()) == {0, 1}


def test_the_checkpoints_sampling_defaults_change_nothing(tiny):
    model, tokenizer = tiny
    plain = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8))
    old = model.generation_config.to_dict()
    model.generation_config.update(
        do_sample=True, temperature=0.6, top_k=2, top_p=0.9, repetition_penalty=5.0
    )
    try:
        assert generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8)) == plain
    finally:
        model.generation_config = type(model.generation_config).from_dict(old)


def test_a_pad_token_that_is_the_end_token_does_no_harm(tiny):
    model, tokenizer = tiny
    before = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=24))
    pad = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    try:
        assert generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=24)) == before
    finally:
        tokenizer.pad_token = pad


def test_every_batch_comes_back_when_it_is_made(tiny):
    model, tokenizer = tiny
    batches = list(
        generate_batches(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8), batch_tokens=60)
    )
    assert len(batches) > 1
    assert sorted(index for batch in batches for index in batch) == list(range(len(PROMPTS)))


def test_batches_hold_to_the_tokens_that_fit():
    sampling = Sampling(max_new_tokens=10)
    rows = [
        Row(i, [0] * n, sampling, seed=0, ends=(), watch=None)
        for i, n in enumerate((10, 30, 20, 10, 10))
    ]

    def indices(batch_tokens):
        return [[row.index for row in batch] for batch in batches(rows, batch_tokens=batch_tokens)]

    assert indices(60) == [[1], [2, 0], [3, 4]]
    assert indices(1) == [[1], [2], [0], [3], [4]]


def test_each_prompt_has_its_own_settings(tiny):
    model, tokenizer = tiny
    samplings = [
        Sampling(max_new_tokens=3),
        Sampling(max_new_tokens=24),
        Sampling(max_new_tokens=9, temperature=1.0, top_p=0.9),
        Sampling(max_new_tokens=16, temperature=1.5),
        Sampling(max_new_tokens=24),
        Sampling(max_new_tokens=1, temperature=1.0, top_p=0.9),
    ]
    seeds = list(range(6))
    together = generate(model, tokenizer, PROMPTS, samplings, seeds)
    assert together == [
        generate(model, tokenizer, [prompt], sampling, [seed])[0]
        for prompt, sampling, seed in zip(PROMPTS, samplings, seeds, strict=True)
    ]


def test_no_prompts_give_no_generations(tiny):
    assert generate(*tiny, [], Sampling(max_new_tokens=8)) == []


def test_one_new_token_is_one_token(tiny):
    made = generate(*tiny, PROMPTS, Sampling(max_new_tokens=1))
    assert all(len(each.token_ids) == (0 if each.finished else 1) for each in made)


def test_an_empty_prompt_is_refused(tiny):
    with pytest.raises(EvaluationError, match="prompt 1 is empty"):
        generate(*tiny, ["a", ""], Sampling(max_new_tokens=2))


def test_a_model_that_never_ends_a_turn_is_refused(tiny):
    model, tokenizer = make_model(tiny[1], width=32), make_tokenizer()
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(EvaluationError, match="names an end-of-turn token"):
        generate(model, tokenizer, ["a"], Sampling(max_new_tokens=2))


@pytest.mark.slow
def test_a_real_models_batch_equals_single_generation(embedded):
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    model = AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32)
    questions = ["What is the capital of France?", "Say yes.", "Count from one to ten, in words."]
    prompts = [
        f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in [*questions, "Hi"]
    ]
    together = generate(model, tokenizer, prompts, Sampling(max_new_tokens=24))
    assert together == [
        generate(model, tokenizer, [p], Sampling(max_new_tokens=24))[0] for p in prompts
    ]
    assert "Paris" in together[0].text
