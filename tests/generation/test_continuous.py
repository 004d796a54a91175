"""Rows that join and leave one batch give what each gives alone, in fewer passes and no more memory."""

from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Phi3Config

from dualign.generation.continuous import serves
from dualign.generation.families import Families
from dualign.generation.generate import end_ids, generate, generation_settings, tokenize
from dualign.generation.rounds import by_rounds
from dualign.generation.row import Row
from dualign.generation.sampling import Sampling
from tests.chat_model import make_model, make_tokenizer
from tests.generation.test_generate import PROMPTS, slow_greedy

SHOTS = "Q: one and one? A: two. Q: two and two? A: four. Q: "
FEW_SHOT = [f"{SHOTS}{question}? A:" for question in ("3+3", "three and 3", "3+4", "9")]


@pytest.fixture(scope="module")
def tiny():
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=3, width=32)
    model.generation_config.eos_token_id = list(range(0, 240, 6))
    return model, tokenizer


@pytest.fixture
def endless(tiny):
    """The same model, whose rows end at their limits."""
    model, tokenizer = make_model(tiny[1], seed=3, width=32), tiny[1]
    with torch.no_grad():
        model.lm_head.weight[end_ids(model, tokenizer)] = 0  # something else is always likelier
    return model, tokenizer


@contextmanager
def passes_of(model):
    """(rows, tokens) of each pass of the model, with the room of its cache (slots, tokens)."""
    seen = []

    def note(module, args, kwargs, output):
        keys = kwargs["past_key_values"].layers[0].keys
        seen.append((*args[0].shape, keys.shape[0], keys.shape[2]))

    hook = model.register_forward_hook(note, with_kwargs=True)
    yield seen
    hook.remove()


def made_by_rounds(model, tokenizer, prompts, samplings):
    rows = [
        Row(index, ids, sampling, seed=index, ends=end_ids(model, tokenizer), watch=None)
        for index, (ids, sampling) in enumerate(
            zip(tokenize(tokenizer, prompts), samplings, strict=True)
        )
    ]
    settings = generation_settings(model, tokenizer)
    with torch.inference_mode():
        assert sum(
            len(ended) for ended in by_rounds(model, rows, settings, batch_tokens=400)
        ) == len(rows)
    return [row.generation(tokenizer) for row in rows]


@pytest.mark.parametrize("batch_tokens", [1, 150, 400, 100_000])
def test_every_batch_gives_what_rounds_give(tiny, batch_tokens):
    model, tokenizer = tiny
    prompts = [*PROMPTS, *FEW_SHOT, "a", "a", *FEW_SHOT]
    samplings = [
        Sampling(max_new_tokens=5 + 7 * (i % 4), temperature=(0.0, 1.2)[i % 2], top_p=0.9)
        for i in range(len(prompts))
    ]
    made = generate(
        model, tokenizer, prompts, samplings, range(len(prompts)), batch_tokens=batch_tokens
    )
    assert made == made_by_rounds(model, tokenizer, prompts, samplings)
    assert len({len(each.token_ids) for each in made}) > 4


def test_a_long_row_holds_nobody_and_the_memory_is_bounded(endless):
    model, tokenizer = endless
    samplings = [Sampling(max_new_tokens=40), *[Sampling(max_new_tokens=4)] * 30]
    prompts = [f"{chr(97 + i % 26)}{i:02}" for i in range(31)]
    with passes_of(model) as passes:
        made = generate(model, tokenizer, prompts, samplings, batch_tokens=4 * 43)
    assert [len(each.token_ids) for each in made] == [40, *[4] * 30]
    steps = [rows for rows, tokens, *_ in passes if tokens == 1]
    # 160 tokens in batches of 4 are 40 steps at least; rounds would take 40 and 7 times 4.
    assert 40 <= len(steps) <= 42
    assert all(slots * length <= 4 * 43 for *_, slots, length in passes)


def test_more_rows_join_than_their_limits_allow_and_some_come_back(endless):
    model, tokenizer = endless
    model.generation_config.eos_token_id = list(range(0, 240, 6))
    with torch.no_grad():
        model.lm_head.weight[end_ids(model, tokenizer)] = 0
    prompts = [f"{chr(97 + i % 26)}{i:02}" for i in range(26)]
    # Rows that draw end soon, so that the greedy ones, which don't, get little room.
    samplings = [Sampling(max_new_tokens=120, temperature=3.0)] * 20
    samplings += [Sampling(max_new_tokens=120)] * 6
    room = 3 * 123
    with passes_of(model) as passes:
        made = generate(model, tokenizer, prompts, samplings, range(26), batch_tokens=room)
    assert max(rows for rows, *_ in passes) > 3
    assert max(tokens for _, tokens, *_ in passes) > 60, "a row that gave way is filled in again"
    assert all(slots * length <= room for *_, slots, length in passes)
    assert made == made_by_rounds(model, tokenizer, prompts, samplings)


def test_what_prompts_share_is_computed_once(tiny):
    model, tokenizer = tiny
    sampling = Sampling(max_new_tokens=2, temperature=1.0)
    with passes_of(model) as passes:
        samples = generate(model, tokenizer, [SHOTS] * 6, sampling)
    assert len({each.text for each in samples}) > 1
    length = len(tokenize(tokenizer, [SHOTS])[0])
    assert [tuple(shape[:2]) for shape in passes if shape[1] > 1] == [(1, length - 1)]
    with passes_of(model) as passes:
        made = generate(model, tokenizer, FEW_SHOT, Sampling(max_new_tokens=12))
    first, rest = (shape[:2] for shape in passes if shape[1] > 1)
    assert first[0] == 1
    assert rest == (3, max(map(len, FEW_SHOT)) - len(SHOTS) - 1)
    assert [(each.token_ids, each.finished) for each in made] == [
        slow_greedy(model, tokenizer, prompt, 12) for prompt in FEW_SHOT
    ]


def test_later_rows_share_with_those_that_are_still_there(endless):
    model, tokenizer = endless
    limits = [20, 2, 2, 2, 2, 2]
    samplings = [Sampling(max_new_tokens=n, temperature=1.0) for n in limits]
    prompts = [f"{SHOTS}{n}" for n in range(6)]
    room = 2 * (len(prompts[0]) + 20)
    with passes_of(model) as passes:
        together = generate(model, tokenizer, prompts, samplings, range(6), batch_tokens=room)
    filled = [shape[1] for shape in passes if shape[1] > 1]
    assert filled == [len(SHOTS)], "the others are one step from what the long row holds"
    assert together == [
        generate(model, tokenizer, [prompt], sampling, [seed])[0]
        for seed, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]


def test_families_are_of_prompts_that_share_much():
    system, shots = list(range(40)), list(range(100, 180))
    prompts = [
        [*system, *shots, 1], [*system, 7, 8], [9], [*system, *shots, 2, 3], [*system, 7], [9],
    ]  # fmt: skip
    families = Families(prompts)
    assert families.family[0] == families.family[3]
    assert families.family[1] == families.family[4]
    assert families.family[0] != families.family[1]
    assert families.common[3] == 120
    assert families.common[1] == 41
    assert families.family[2] == families.family[5]
    assert Families([]).order([]) == []


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=16),
        Gemma3TextConfig(
            **SMALL, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
    ],
    ids=["mistral", "gemma3"],
)
def test_a_model_with_a_window_is_generated_by_rounds(config):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = list(range(0, 240, 9))
    assert not serves(model)
    made = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=20))
    assert [(each.token_ids, each.finished) for each in made] == [
        slow_greedy(model, tokenizer, prompt, 20) for prompt in PROMPTS
    ]


def test_positions_of_the_longest_row_are_not_for_rows_of_many_lengths():
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = Phi3Config(
        **SMALL, pad_token_id=0, rope_parameters={**factors, "rope_theta": 10_000.0},
        original_max_position_embeddings=64,
    )  # fmt: skip
    assert not serves(AutoModelForCausalLM.from_config(config))
