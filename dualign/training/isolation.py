"""Refuse models that don't keep the documents of a flat batch apart, by their layers and by trial."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Trainer

from dualign.errors import CheckpointError
from dualign.models.logits import FLOAT32_BOUND, FLOOR, ROUNDED_BOUND, compare_logits

# Layers whose attention is bounded by positions; any other kind carries a state along the row.
_BOUNDED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_TRIAL_TOKENS = 8
_WAY_OUT = (
    "Choose another model, or data.packing: none with per_device_train_batch_size: 1 (and "
    "per_device_eval_batch_size: 1)."
)


def unbounded_layers(layer_types: Iterable[str] | None) -> list[str]:
    """Return the kinds of layers in which a document sees the one before it in its row."""
    return sorted(set(layer_types or ()) - _BOUNDED_LAYERS)


def check_isolation(config: PreTrainedConfig, model: str, *, tokens: int) -> None:
    """Refuse a model in which documents of a batch would see each other, or be cut.

    Args:
        tokens: of the longest flat batch.

    Raises:
        CheckpointError: a layer that isn't bounded by positions, or one that counts them along the
            batch instead of from the start of each document.
    """
    layers = unbounded_layers(getattr(config, "layer_types", None))
    if layers:
        raise CheckpointError(
            f"{model}: has {', '.join(layers)} layers, which carry a state from each document into the "
            "next one of its batch, so rows would be trained on what others say. Expected attention "
            f"that positions bound (full, sliding or chunked). {_WAY_OUT}"
        )
    chunk = getattr(config.get_text_config(), "attention_chunk_size", None)
    if (
        chunk
        and tokens > chunk
        and "chunked_attention" in (config.get_text_config().layer_types or ())
    ):
        raise CheckpointError(
            f"{model}: its layers see chunks of {chunk} tokens, which transformers counts along the batch, so "
            f"in a batch of up to {tokens} tokens a chunk's end may cut any document. Set "
            f"per_device_train_batch_size and data.max_tokens so that they make {chunk} at most."
        )


def try_isolation(trainer: Trainer, model: str, attention: str) -> None:
    """Refuse a model in which a document's logits change with the one before it in the batch.

    Layers that hold a state, as those of state-space models, have no name that all models share.
    Nothing is tried where this process doesn't hold the weights (ZeRO-3, FSDP's other ranks), or holds
    them on the CPU until they are sharded and the attention is a GPU's.

    Raises:
        CheckpointError: they change.
    """
    policy = trainer.model
    device = next(policy.parameters()).device
    if any(hasattr(p, "ds_id") or p.device.type == "meta" for p in policy.parameters()):
        return
    if device.type != trainer.args.device.type and attention.startswith(("flash", "flex")):
        return
    training = policy.training
    policy.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        first_TV, second_TV = (
            _second_document(trainer, start, device).float().cpu()
            for start in (2, 2 + _TRIAL_TOKENS)
        )
    policy.train(training)
    figures = compare_logits(first_TV, second_TV)
    exact = policy.dtype == torch.float32 and trainer.accelerator.mixed_precision == "no"
    largest = figures["reload_max_logit_difference"]
    leaks = largest > max(FLOOR, FLOAT32_BOUND * figures["largest_logit"])
    if not exact:
        leaks = figures["reload_rms_share"] > ROUNDED_BOUND
    if leaks:
        raise CheckpointError(
            f"{model}: the logits of a document change by {largest:.2g} with the document before it in its "
            "batch: its layers carry a state along the row, or take no positions, so rows would be trained on "
            f"what others say. {_WAY_OUT}"
        )


def _second_document(trainer: Trainer, start: int, device: torch.device) -> Tensor:
    """Return the logits [T, V] of a document behind another one, which begins with id `start`."""
    positions = list(range(_TRIAL_TOKENS))
    vocabulary = trainer.model.config.get_text_config().vocab_size
    ids = [(start + i) % vocabulary for i in positions] + [i % vocabulary for i in positions]
    batch = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions * 2])}
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    logits_TV: Tensor = trainer.model(**batch, use_cache=False).logits[0, _TRIAL_TOKENS:]
    return logits_TV
