"""Families of models in small: the architecture of each, its chat template, and its control tokens.

Templates are TRL's copies where it has them. It has none of Mistral and Phi-4-mini, whose are written
here to the published format: the text of the first three turns, token by token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualign.data.text.installed import installed_text
from dualign.data.text.template import load_template

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Version 3: the system text stands before the last question.
MISTRAL = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set turns = messages[1:] if system else messages %}"
    "{% set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
    "{% for turn in turns %}{% if turn.role == 'user' %}"
    "{{ '[INST] ' + (system + '\\n\\n' if system and turn == asked[-1] else '') + turn.content + '[/INST]' }}"
    "{% else %}{{ ' ' + turn.content | trim + eos_token }}{% endif %}{% endfor %}"
)
PHI4_MINI = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """A model of a family: its real dimensions, as its config.json has them."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_values: int
    vocabulary: int
    tied: bool
    head_dim: int | None = None


@dataclass(frozen=True)
class Family:
    """A family; `specials` are its control tokens: the end of a document first, the end of a turn last."""

    recipe: str
    model_type: str
    template: Callable[[], str]
    specials: tuple[str, ...]
    eos: str
    sizes: tuple[Size, ...]
    bos: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = (
    Family(
        "qwen3",
        "qwen3",
        lambda: installed_text("trl:qwen3"),
        CHATML,
        eos="<|im_end|>",
        sizes=(
            Size("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 151936, True, 128),
            Size("Qwen3-1.7B", 28, 2048, 6144, 16, 8, 151936, True, 128),
            Size("Qwen3-4B", 36, 2560, 9728, 32, 8, 151936, True, 128),
            Size("Qwen3-8B", 36, 4096, 12288, 32, 8, 151936, False, 128),
        ),
    ),
    Family(
        "smollm2",
        "llama",
        lambda: load_template("chatml").text,
        CHATML,
        eos="<|im_end|>",
        sizes=(
            Size("SmolLM2-135M-Instruct", 30, 576, 1536, 9, 3, 49152, True),
            Size("SmolLM2-360M-Instruct", 32, 960, 2560, 15, 5, 49152, True),
            Size("SmolLM2-1.7B-Instruct", 24, 2048, 8192, 32, 32, 49152, True),
        ),
    ),
    Family(
        "smollm3",
        "smollm3",
        lambda: load_template("smollm3").text,
        ("<|end_of_text|>", "<|begin_of_text|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        sizes=(Size("SmolLM3-3B", 36, 2048, 11008, 16, 4, 128256, True),),
    ),
    Family(
        "llama3",
        "llama",
        lambda: installed_text("trl:llama3_2"),
        (
            "<|end_of_text|>",
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        sizes=(
            Size("Llama-3.2-1B-Instruct", 16, 2048, 8192, 32, 8, 128256, True, 64),
            Size("Llama-3.2-3B-Instruct", 28, 3072, 8192, 24, 8, 128256, True, 128),
            Size("Llama-3.1-8B-Instruct", 32, 4096, 14336, 32, 8, 128256, False, 128),
        ),
    ),
    Family(
        "gemma3",
        "gemma3_text",
        lambda: installed_text("trl:gemma3"),
        ("<eos>", "<bos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos="<bos>",
        sizes=(
            Size("gemma-3-270m-it", 18, 640, 2048, 4, 1, 262144, True, 256),
            Size("gemma-3-1b-it", 26, 1152, 6912, 4, 1, 262144, True, 256),
        ),
        config={"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    Family(
        "mistral",
        "mistral",
        lambda: MISTRAL,
        ("<s>", "<unk>", "[INST]", "[/INST]", "</s>"),
        eos="</s>",
        bos="<s>",
        sizes=(
            Size("Mistral-7B-Instruct-v0.3", 32, 4096, 14336, 32, 8, 32768, False, 128),
            Size("Ministral-8B-Instruct-2410", 36, 4096, 12288, 32, 8, 131072, False, 128),
        ),
    ),
    Family(
        "phi4-mini",
        "phi3",
        lambda: PHI4_MINI,
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        sizes=(Size("Phi-4-mini-instruct", 32, 3072, 8192, 24, 8, 200064, True),),
    ),
)


def save_tokenizer(family: Family, folder: Path) -> Any:
    """Save and return a byte-level tokenizer with the family's control tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(family.specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["Ana gets 8 dollars back. It gets 120 kilometers far."], trainer)
    if family.bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            special_tokens=[(family.bos, backend.token_to_id(family.bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=next(t for t in ("<pad>", "<unk>", *family.specials) if t in family.specials),
        additional_special_tokens=list(family.specials),
    )
    tokenizer.chat_template = family.template()
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_tiny(family: Family, folder: Path) -> Path:
    """Save a model of two layers of the family's architecture."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = save_tokenizer(family, folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=family.sizes[0].tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **family.config,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def save_dimensions(family: Family, size: Size, folder: Path) -> Path:
    """Save the config of a real size, without weights: what a plan reads."""
    from transformers import AutoConfig

    more = {"head_dim": size.head_dim} if size.head_dim else {}
    AutoConfig.for_model(
        family.model_type,
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_values,
        tie_word_embeddings=size.tied,
        pad_token_id=0,
        **more,
    ).save_pretrained(folder)
    return folder
