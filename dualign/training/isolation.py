"""Refuse models that don't keep the documents of a flat batch apart."""

from collections.abc import Iterable

from transformers import PreTrainedConfig

from dualign.errors import CheckpointError

# Layers whose attention is bounded by positions; any other kind carries a state along the row.
_BOUNDED_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def unbounded_layers(layer_types: Iterable[str] | None) -> list[str]:
    """Return the kinds of layers in which a document sees the one before it in its row."""
    return sorted(set(layer_types or ()) - _BOUNDED_LAYERS)


def check_isolation(config: PreTrainedConfig, model: str) -> None:
    """Refuse a model in which documents of a batch would see each other.

    Raises:
        CheckpointError: a layer that isn't bounded by positions.
    """
    layers = unbounded_layers(getattr(config, "layer_types", None))
    if layers:
        raise CheckpointError(
            f"{model}: has {', '.join(layers)} layers, which carry a state from each document into the "
            "next one of its batch, so rows would be trained on what others say. Expected attention "
            "that positions bound (full, sliding or chunked). Choose another model, or "
            "data.packing: none with per_device_train_batch_size: 1."
        )
