"""A model in training that answers in between, and trains on as if nobody had asked."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer

from dualign.attention.function import ATTENTION
from dualign.attention.support import default_attention
from dualign.models.head import without_adapters


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """Yield the model that `trainer` trains, its adapters in its layers, ready to answer.

    Random states, the mode (training or evaluation) and the attention are afterwards what they
    were: attention by document knows no padded rows, and so no batches of prompts.
    """
    model = without_adapters(trainer.model)
    training, attention = trainer.model.training, model.config._attn_implementation
    with _same_random_numbers():
        if attention == ATTENTION:
            config = model.config  # which a copy through a dict names no attention
            model.set_attn_implementation(default_attention(config.from_dict(config.to_dict())))
        trainer.model.eval()
        try:
            with trainer.accelerator.autocast():
                yield model
        finally:
            trainer.model.train(training)
            model.set_attn_implementation(attention)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Draw afterwards what would have been drawn without the block."""
    python, array, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = getattr(torch, accelerator.type) if accelerator else None
    on_device = device.get_rng_state() if device else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(cpu)
        if device:
            device.set_rng_state(on_device)
