"""Loads what a training stage starts from: tokenizer, weights, and the adapter of an earlier stage.

peft is imported where there is an adapter: it takes more than a second.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dualign.data.text.template import ChatTemplate, load_template
from dualign.errors import CheckpointError, TemplateError
from dualign.models.source import ModelSource, resolve_model
from dualign.training.config import LoraSettings, TrainingStage

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

NEW = "default"  # the adapter in training: PEFT and TRL call it so
PARENT = "parent"  # the adapter of the stage before, frozen
_PAD_NAMES = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


def load_tokenizer(
    stage: TrainingStage, start: ModelSource
) -> tuple[PreTrainedTokenizerBase, ChatTemplate]:
    """The tokenizer as it will be saved: template set, end-of-turn as eos, and a pad token that isn't it."""
    tokenizer = AutoTokenizer.from_pretrained(start.tokenizer, revision=start.revision)
    template = load_template(stage.template, tokenizer=tokenizer)
    tokenizer.chat_template = with_defaults(template.text, stage.template_kwargs)
    end = end_of_turn(template, tokenizer)
    if tokenizer.eos_token != end:
        tokenizer.eos_token = end
        template = load_template(stage.template, tokenizer=tokenizer)  # it may write eos_token out
    if tokenizer.pad_token is None or tokenizer.pad_token == end:
        tokenizer.pad_token = _pad_token(tokenizer, end)
    return tokenizer, template


def with_defaults(text: str, kwargs: Mapping[str, Any]) -> str:
    """The template with what the recipe gave it as defaults, so that it renders after training as it did in training."""
    lines = [
        f"{{%- set {name} = {name} if {name} is defined else {json.dumps(value)} %}}\n"
        for name, value in kwargs.items()
    ]
    # A template of an earlier stage has them already.
    return "".join(line for line in lines if line not in text) + text


def end_of_turn(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token that closes an assistant turn, as the template writes it.

    Raises:
        TemplateError: the turn isn't closed by a token of the vocabulary, so the model couldn't learn to stop.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, chat_template=template.text, enable_thinking=False
    )
    ids = tokenizer(text[text.rindex("b") + 1 :], add_special_tokens=False)["input_ids"]
    added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    closing = [i for i in ids if i in added]
    if not closing:
        raise TemplateError(
            f"template {template.name}: an assistant turn ends in {text[text.rindex('b') + 1 :]!r}, which holds no special "
            f"token of this tokenizer; choose a template whose end-of-turn token it has"
        )
    return str(tokenizer.convert_ids_to_tokens(closing[0]))


def _pad_token(tokenizer: PreTrainedTokenizerBase, end: str) -> str:
    vocabulary = tokenizer.get_vocab()
    for name in (*_PAD_NAMES, tokenizer.unk_token):
        if name and name in vocabulary and name != end:
            return str(name)
    raise CheckpointError(
        "the tokenizer has no pad token besides its end-of-turn token: add one to it before training"
    )


def load_base(stage: TrainingStage, start: ModelSource) -> PreTrainedModel:
    """The weights a stage starts from; under nf4 they are quantised as they load."""
    config = AutoConfig.from_pretrained(start.base, revision=start.revision)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{start.base}: the weights are already quantised; start from 16- or 32-bit weights"
        )
    options: dict[str, Any] = {
        "dtype": getattr(torch, stage.dtype),
        "attn_implementation": stage.attn_implementation,
    }
    if stage.quantization == "nf4":
        options |= {"quantization_config": nf4_settings(stage.dtype), "device_map": {"": _device()}}
    model = AutoModelForCausalLM.from_pretrained(start.base, revision=start.revision, **options)
    model.config.use_cache = False
    return model


def load_checkpoint(folder: str | Path, **options: Any) -> "PreTrainedModel | PeftModel":
    """A model folder, or an adapter's folder on its base, for inference. `options` go to `from_pretrained` of the base.

    Adapters go through PEFT: transformers' own loading of an adapter folder (5.23) leaves DoRA's magnitudes at their start.
    """
    start = resolve_model(str(folder))
    model = AutoModelForCausalLM.from_pretrained(start.base, revision=start.revision, **options)
    if start.adapter is None:
        return model.eval()
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(start.adapter)).eval()


def nf4_settings(dtype: str) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def lora_config(settings: LoraSettings) -> "LoraConfig":
    """Our settings as PEFT's."""
    from peft import LoraConfig

    targets = settings.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
    )


def policy(
    stage: TrainingStage, start: ModelSource, *, seed: int
) -> "tuple[PreTrainedModel | PeftModel, LoraConfig | None]":
    """The model to train, and the adapter that TRL shall put on it (None when it is there already or not wanted).

    An adapter of the stage before stays an adapter, frozen, beside the new one: folded into a bfloat16 base it would
    be rounded, and an NF4 base can't take it.

    Raises:
        CheckpointError: full fine-tuning of an adapter, or a DoRA parent, which doesn't add up with another adapter.
    """
    model = load_base(stage, start)
    if start.adapter is None:
        return model, lora_config(stage.lora) if stage.lora else None
    if stage.lora is None:
        raise CheckpointError(
            f"{start.adapter}: is an adapter, and full fine-tuning starts from weights; add lora to this stage, or set "
            "save: merged in the stage that trained it"
        )
    from peft import PeftConfig, get_peft_model
    from transformers import set_seed  # it brings peft

    if PeftConfig.from_pretrained(str(start.adapter)).use_dora or stage.lora.use_dora:
        raise CheckpointError(
            f"{start.adapter}: DoRA rescales the base, so two adapters don't add up when one is DoRA; set save: merged in "
            "the stage that trained it"
        )
    set_seed(seed)
    both = get_peft_model(model, lora_config(stage.lora))
    both.load_adapter(str(start.adapter), adapter_name=PARENT, is_trainable=False)
    use_both(both)
    return both, None


def use_both(policy: "PeftModel") -> None:
    """The parent and the new adapter in force; only the new one learns.

    The new one comes first: transformers restores and trains the first of several active adapters.
    """
    policy.base_model.set_adapter([NEW, PARENT])
    policy.set_requires_grad(PARENT, requires_grad=False)


def use_parent(policy: "PeftModel") -> None:
    """Only the parent in force: the reference of a preference stage."""
    policy.base_model.set_adapter(PARENT, inference_mode=True)
