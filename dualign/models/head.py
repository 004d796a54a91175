"""Log-probabilities of a model's labeled positions, in place of its logits."""

import functools
import types
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from dualign.data.tokens.labels import IGNORE_INDEX
from dualign.models.token_scores import (
    Extra,
    LogitForm,
    TokenScores,
    gathered_head,
    score_labels,
)


@dataclass
class LabelScores(ModelOutput):
    """Figures in the shape of the labels [B, T], zero where a label is -100; see `TokenScores`.

    The names are those of TRL's `FusedCausalLMOutput`.
    """

    loss: Tensor | None = None
    """- the sum of log_probs / (labels, or num_items_in_batch), and the router's loss by its weight"""
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None
    """where there is a label"""
    aux_loss: Tensor | None = None
    """load balancing of a mixture of experts, when called with output_router_logits=True"""


def add_label_scores(model: PreTrainedModel, extras: Collection[Extra] = ()) -> None:
    """Let `model(..., shift_labels=labels, fused_lm_head=True)` return the figures of its labels.

    The call is that of TRL's `add_fused_lm_head`, whose forward this one takes the place of. The head
    is applied to labeled positions alone, on every device, and its logits are computed once while it
    is frozen (`token_scores`). Only the log-probabilities have a gradient.

    Without `fused_lm_head` the model's forward is what it was.

    Args:
        model: a causal language model, before it is wrapped for several processes.
        extras: figures of each label beside its log-probability; a call's `extras=` replaces them.
    """
    plain_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the names of the arguments
    def forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        extras: Collection[Extra] = tuple(extras),
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        return label_scores(self, *args, extras=extras, **kwargs)

    model.forward = types.MethodType(forward, model)


def _logit_form(config: PreTrainedConfig) -> LogitForm:
    """Return how a model's logits follow from its head, from the names that model families give it."""
    text = config.get_text_config()
    scale = next(
        (
            value
            for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
            if (value := getattr(text, name, None)) is not None
        ),
        None,
    )
    divisor = getattr(text, "logits_scaling", None)
    if scale is None and divisor is not None:
        # HyperCLOVA X multiplies by what Granite and MiniCPM3 divide by.
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    softcap = getattr(text, "final_logit_softcapping", None)
    return LogitForm(1.0 if scale is None else scale, softcap)


def label_scores(
    model: PreTrainedModel,
    *args: Any,
    extras: Collection[Extra] = (),
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **kwargs: Any,
) -> LabelScores:
    """Call a model; return the figures of `shift_labels` [B, T], or of `labels` shifted, [B, T - 1]."""
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    backbone = _backbone(model)(*args, **kwargs | {"use_cache": False})
    hidden_BTD = backbone.last_hidden_state
    if shift_labels is None:
        assert labels is not None
        hidden_BTD, shift_labels = hidden_BTD[:, :-1], labels[:, 1:]
    # Looked up at each call: PEFT, FSDP and ZeRO replace it.
    head: Any = model.get_output_embeddings()
    bias: Any = getattr(head, "bias", None)  # PEFT's layer of trainable rows has none
    weight_VD, bias_V = (
        parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        for parameter in (head.weight, bias)
    )
    labels_BT = shift_labels.to(weight_VD.device)
    mask_BT = labels_BT != IGNORE_INDEX
    with gathered_head(weight_VD, bias_V):
        scores = score_labels(
            hidden_BTD.to(weight_VD.device)[mask_BT],
            weight_VD,
            bias_V,
            labels_BT[mask_BT],
            form=_logit_form(model.config),
            extras=extras,
        )
    output = _in_label_shape(scores, mask_BT)
    items = mask_BT.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    output.loss = -scores.log_probs.sum() / items
    if kwargs.get("output_router_logits"):
        output.aux_loss = _router_loss(text, backbone.router_logits, kwargs.get("attention_mask"))
        output.loss = output.loss + getattr(text, "router_aux_loss_coef", 0.0) * output.aux_loss
    return output


def _backbone(model: PreTrainedModel) -> torch.nn.Module:
    """Return the model below the head. Llama 4's text model names another attribute for it than it has."""
    base: torch.nn.Module = model.base_model
    return model.get_submodule("model") if base is model else base


def _in_label_shape(scores: TokenScores, mask_BT: Tensor) -> LabelScores:
    # `masked_scatter` keeps a batch without labels connected to the model: its gradient is zero.
    fields = {
        name: values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)
        for name, values_N in scores._asdict().items()
        if values_N is not None
    }
    return LabelScores(label_mask=mask_BT, **fields)


def _router_loss(
    config: PreTrainedConfig, router_logits: Any, attention_mask: Tensor | None
) -> Tensor:
    """Return the load-balancing loss of a mixture of experts, which every family takes from Mixtral.

    Zero for a dense model of such a family, as Granite 4.0 Micro.
    """
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    if not router_logits:
        return torch.zeros(())
    experts = getattr(config, "num_experts", None) or config.num_local_experts  # Granite, Phi-MoE
    loss: Tensor = load_balancing_loss_func(
        router_logits, experts, config.num_experts_per_tok, attention_mask
    )
    return loss


def without_adapters(model: torch.nn.Module) -> PreTrainedModel:
    """Return the language model of a PEFT model, in whose layers the adapters stay; or the model."""
    if isinstance(model, PreTrainedModel):
        return model
    base: PreTrainedModel = model.get_base_model()  # type: ignore[operator]
    return base
