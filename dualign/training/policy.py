"""The model to train: base weights, the adapter of the stage before, a new adapter.

peft is imported where there is an adapter: that takes more than a second.
"""

from typing import TYPE_CHECKING

import torch

from dualign.errors import CheckpointError
from dualign.models.loading import load_base
from dualign.models.new_rows import give_rows, new_rows
from dualign.models.source import ModelSource
from dualign.training.config import TrainingStage
from dualign.training.precision import arithmetic, sharding_engine, training_device

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_POLICY_ADAPTER = "default"  # the adapter in training: PEFT and TRL call it so
REFERENCE_ADAPTER = "parent"  # the adapter of the stage before, frozen


def load_policy(
    stage: TrainingStage, source: ModelSource, *, seed: int
) -> "tuple[PreTrainedModel | PeftModel, LoraConfig | None]":
    """Return the model and the LoraConfig for TRL to apply; None if the adapter is already attached
    or LoRA is off.

    An adapter of the stage before stays an adapter, frozen, beside the new one: folded into a
    bfloat16 base it would be rounded, and an NF4 base can't take it.

    Raises:
        CheckpointError: full fine-tuning of an adapter, or a DoRA adapter beside another one, which
            don't add up.
    """
    model = load_base(
        source,
        dtype=stage.dtype,
        attn_implementation=stage.attn_implementation,
        nf4=stage.quantization == "nf4",
        on_cpu=training_device(stage).kind == "cpu",
    )
    if rows := new_rows(stage.new_tokens, source):
        give_rows(model, rows)
    if source.adapter is None:
        return model, _lora_config(stage, model) if stage.lora else None
    if stage.lora is None:
        raise CheckpointError(
            f"{source.adapter}: is an adapter, and full fine-tuning starts from weights; add lora to "
            "this stage, or set save: merged in the stage that trained it"
        )
    from peft import PeftConfig, get_peft_model
    from transformers import set_seed  # it brings peft

    if PeftConfig.from_pretrained(str(source.adapter)).use_dora or stage.lora.use_dora:
        raise CheckpointError(
            f"{source.adapter}: DoRA rescales the base, so two adapters don't add up when one is DoRA; "
            "set save: merged in the stage that trained it"
        )
    set_seed(seed)
    policy = get_peft_model(model, _lora_config(stage, model))
    policy.load_adapter(str(source.adapter), adapter_name=REFERENCE_ADAPTER, is_trainable=False)
    activate_policy_adapters(policy)
    return policy, None


def _lora_config(stage: TrainingStage, model: "PreTrainedModel") -> "LoraConfig":
    """Return the recipe's `lora:` as PEFT's config."""
    from peft import LoraConfig

    adapter = stage.lora
    assert adapter is not None
    targets = adapter.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_routers(model) if targets == "all-linear" else None,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
    )
    if _passes_are_slow(stage):
        from dualign.training.low_rank import LowRankLinear

        config._register_custom_module({torch.nn.Linear: LowRankLinear})
    return config


def _routers(model: "PreTrainedModel") -> list[str] | None:
    """Return the names of Linear layers that return more than a product, as Llama 4's and Phi-MoE's
    routers do: an adapter can't be added to that.
    """
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module).__name__.endswith("Router")
    }
    return sorted(names) or None


def _passes_are_slow(stage: TrainingStage) -> bool:
    """Whether PEFT's own layer would spend its time on passes through memory: on a CPU, in float32.

    Engines that shard gather a layer's weights when its modules are called, which stay uncalled.
    """
    return (
        training_device(stage).kind == "cpu"
        and stage.quantization is None
        and arithmetic(stage) == "float32"
        and sharding_engine(stage) is None
    )


def activate_policy_adapters(policy: "PeftModel") -> None:
    """Activate both adapters; only the new one is trainable.

    The new one comes first: transformers restores and trains the first of several active adapters.
    """
    policy.base_model.set_adapter([_POLICY_ADAPTER, REFERENCE_ADAPTER])
    policy.set_requires_grad(REFERENCE_ADAPTER, requires_grad=False)


def activate_reference_adapter(policy: "PeftModel") -> None:
    """Activate the earlier stage's adapter alone: the reference of a preference stage."""
    policy.base_model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
