"""A tiny byte-level chat model that has learnt four sums by heart, in both modes."""

from importlib.resources import files

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# In no_think mode only the first answer is right, so accuracies are known: 4 of 4 and 1 of 4.
LEARNT = {
    "1+2": ("one and two", "3", "3"),
    "4+5": ("four, five", "9", "8"),
    "2+2": ("two twice is", "4", "7"),
    "7+1": ("seven up one", "8", "1"),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
    template = files("dualign.data").joinpath("templates/dualign.jinja")
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, width: int = 64):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def prompt(tokenizer, question: str, mode: str) -> str:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=mode == "think",
    )


def taught_row(tokenizer, question: str, mode: str, said: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and those of the answer to be learnt, with its end of turn."""
    start, answer = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (prompt(tokenizer, question, mode), f"{said}<|im_end|>")
    )
    return start, answer


def fit(model, rows, steps: int, enough: float = 0.0) -> float:
    """Teach rows of `taught_row` until the loss is below `enough`, or for so many steps; return the last loss."""
    length = max(len(start) + len(answer) for start, answer in rows)
    ids, labels = (
        torch.tensor([[*row, *[end] * (length - len(row))] for row in padded])
        for end, padded in (
            (0, [start + answer for start, answer in rows]),
            (-100, [[-100] * len(start) + answer for start, answer in rows]),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < enough:
            break
    model.eval()
    return loss.item()


def learn(model, tokenizer) -> None:
    rows = [
        taught_row(tokenizer, f"What is {question}?", mode, said)
        for question, (thought, right, quick) in LEARNT.items()
        for mode, said in (("think", f"{thought}\n</think>\n\n{right}"), ("no_think", quick))
    ]
    assert fit(model, rows, 400, 0.005) < 0.02, "the fixture has to know its rows by heart"
