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


def _rows(tokenizer):
    for question, (thought, right, quick) in LEARNT.items():
        asked = f"What is {question}?"
        for mode, said in (
            ("think", f"{thought}\n</think>\n\n{right}<|im_end|>"),
            ("no_think", f"{quick}<|im_end|>"),
        ):
            start = tokenizer(prompt(tokenizer, asked, mode), add_special_tokens=False)["input_ids"]
            yield start, tokenizer(said, add_special_tokens=False)["input_ids"]


def learn(model, tokenizer) -> None:
    rows = [(a + b, [-100] * len(a) + b) for a, b in _rows(tokenizer)]
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [0] * (length - len(i)) for i, _ in rows])
    labels = torch.tensor([x + [-100] * (length - len(x)) for _, x in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.005:
            break
    model.eval()
    assert loss.item() < 0.02, "the fixture has to know its rows by heart"
