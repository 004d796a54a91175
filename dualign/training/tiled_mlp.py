"""MLPs of a model computed in tiles along the tokens, each again in the backward pass.

An MLP's inner tensors are several times as wide as the hidden states, and a token's don't depend on
another's. So one tile's are in memory at a time, whatever the length of the row (ALST, arXiv
2506.13996, section 3.1.1). Outputs and gradients are the same but for rounding: the gradient of a
weight is summed tile by tile.
"""

import copy
import inspect
import types
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer

from dualign.errors import CheckpointError
from dualign.training.config import TILE_TOKENS

# What transformers' decoder layers call their MLP.
_NAMES = ("mlp", "feed_forward", "shared_mlp")


def tile_mlps(model: nn.Module) -> list[str]:
    """Let the MLPs of a model compute long inputs in tiles; return the kinds that can't.

    The modules and their parameters stay what and where they are. Mixtures of experts are left
    alone: which tokens an expert gets, and its load, depend on all of them.

    Args:
        model: transformers' model, before an adapter is put into its layers.

    Raises:
        CheckpointError: none of its layers has an MLP that can be tiled.
    """
    tiled, left = 0, set()
    for layer in _layers(model):
        for block in filter(None, (getattr(layer, name, None) for name in _NAMES)):
            if _is_dense(block):
                block.forward = types.MethodType(_forward_in_tiles, block)
                _gather_whole(block)
                tiled += 1
            else:
                left.add(type(block).__name__)
    if not tiled:
        kinds = f", found {', '.join(sorted(left))}" if left else ""
        raise CheckpointError(
            f"tiled_mlp: {type(model).__name__} has no MLP that can be tiled: expected one of two or "
            f"three linear layers in each decoder layer{kinds}; remove tiled_mlp"
        )
    return sorted(left)


def tiles_in_words(config: PreTrainedConfig) -> str:
    """Return a line for the plan.

    Raises:
        CheckpointError: a model of this config has no MLP that can be tiled.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    left = tile_mlps(model)
    words = f"MLPs: in tiles of {TILE_TOKENS:,} tokens"
    return f"{words}; {left_alone(left)}" if left else words


def left_alone(kinds: Iterable[str]) -> str:
    """Return what is to say about the kinds of MLPs that aren't tiled."""
    return f"tiled_mlp leaves {', '.join(kinds)} alone: their inner tensors grow with the row"


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


def _is_dense(block: nn.Module) -> bool:
    """Whether all parameters are those of two or three linear layers, and one tensor goes in."""
    linears = [part for part in block.modules() if isinstance(part, nn.Linear)]
    inside = {parameter for part in linears for parameter in part.parameters()}
    arguments = inspect.signature(type(block).forward).parameters
    return len(linears) in (2, 3) and inside == set(block.parameters()) and len(arguments) == 2


def _gather_whole(block: nn.Module) -> None:
    """Let ZeRO-3 gather the weights of a block once, around all of its tiles.

    It would gather those of each linear layer in each tile, and processes whose rows have different
    numbers of tiles would wait for each other in different places.
    """
    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_module

        set_z3_leaf_module(block, True)


def _forward_in_tiles(self: nn.Module, hidden: Tensor) -> Tensor:
    """Return what the class's forward returns, [..., D]; the method that takes its place.

    Each tile is checkpointed, not computed in a function of autograd's own: engines that gather
    weights, autocast and dropout go on as under gradient checkpointing, and a parameter gets its
    gradient once.
    """
    forward: Any = partial(type(self).forward, self)
    tokens = hidden.shape[:-1]
    if tokens.numel() <= TILE_TOKENS:
        return forward(hidden)  # type: ignore[no-any-return]
    tiles = [
        checkpoint(forward, tile_RD[None], use_reentrant=False)
        for tile_RD in torch.split(hidden.flatten(0, -2), TILE_TOKENS)
    ]
    return torch.cat(tiles, dim=1).view(*tokens, -1)
