"""The model to train: base weights, the adapter of the stage before, a new adapter.

peft is imported where there is an adapter: that takes more than a second.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.lora import read_adapter
from dualign.checkpoints.token_rows import last_token, write_without_rows
from dualign.errors import CheckpointError, ConfigError
from dualign.models.loading import load_base
from dualign.models.new_rows import (
    give_rows,
    new_rows,
    put_rows,
    require_rows,
    rows_of,
    trainable_rows,
)
from dualign.models.new_tokens import NewRow
from dualign.models.source import ModelSource
from dualign.training.adapter import why_not_beside
from dualign.training.adapter_layers import layer_issues, peft_config
from dualign.training.config import TrainingStage
from dualign.training.frozen_start import FROZEN_START, with_frozen_start
from dualign.training.place_of_tokens import require_no_other_change, require_place
from dualign.training.precision import arithmetic, sharding_engine, training_device
from dualign.training.tiled_mlp import left_alone, tile_mlps

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_POLICY_ADAPTER = "default"  # the adapter in training: PEFT and TRL call it so
REFERENCE_ADAPTER = "parent"  # the adapter of the stage before, frozen

logger = logging.getLogger(__name__)


def load_policy(
    stage: TrainingStage, source: ModelSource, *, seed: int
) -> "tuple[PreTrainedModel | PeftModel, LoraConfig | None]":
    """Return the model and the LoraConfig for TRL to apply; None if the adapter is already attached
    or LoRA is off.

    An adapter of the stage before stays an adapter, frozen, beside the new one: folded into a
    bfloat16 base it would be rounded, and an NF4 base can't take it.

    Raises:
        CheckpointError: full fine-tuning of an adapter, or an adapter beside another one with which it
            doesn't add up, as with DoRA; or new tokens without a place; or `tiled_mlp` of a model
            without an MLP that can be tiled.
        ConfigError: `lora` names what the model doesn't have.
    """
    model = load_start(stage, source)
    if stage.tiled_mlp and (left := tile_mlps(model)):
        logger.warning("%s: %s", source.base, left_alone(left))
    if rows := new_rows(stage.new_tokens, source):
        require_place(stage, source, rows_of(model), rows)
        give_rows(model, rows)
    config = _lora_config(stage, model, rows) if stage.lora else None
    if source.adapter is None and not (stage.lora and stage.lora.takes_from_base):
        return model, config
    if stage.lora is None or config is None:
        raise CheckpointError(
            f"{source.adapter}: is an adapter, and full fine-tuning starts from weights; add lora to "
            "this stage, or set save: merged in the stage that trained it"
        )
    from peft import PeftConfig, get_peft_model
    from transformers import set_seed  # it brings peft

    set_seed(seed)
    if source.adapter is not None:
        parent = PeftConfig.from_pretrained(str(source.adapter)).to_dict()
        if reason := why_not_beside(stage.lora, parent):
            way_out = "set save: merged in the stage that trained it"
            raise CheckpointError(f"{source.adapter}: {reason}; {way_out}")
        if last_token(parent) >= 0:
            require_no_other_change(stage.lora.target_modules, model)
    start = with_frozen_start if stage.lora.takes_from_base else get_peft_model
    with _without_rows(source.adapter, model) as adapter:
        policy: PeftModel = start(model, config)
        if adapter is not None:
            policy.load_adapter(str(adapter), adapter_name=REFERENCE_ADAPTER, is_trainable=False)
    activate_policy_adapters(policy)
    return policy, None


def load_start(stage: TrainingStage, source: ModelSource) -> "PreTrainedModel":
    """Return the base as a stage trains it: its types, its attention, its positions."""
    return load_base(
        source,
        dtype=stage.dtype,
        attn_implementation=stage.attn_implementation,
        nf4=stage.quantization == "nf4",
        on_cpu=training_device(stage).kind == "cpu",
        context=stage.context,
    )


@contextmanager
def _without_rows(adapter: Path | None, model: "PreTrainedModel") -> Iterator[Path | None]:
    """Write the rows of tokens that an adapter trained into the model; yield the folder of the rest.

    They are frozen from here on, and PEFT (0.21) saves no adapter without rows beside one with rows.
    """
    if adapter is None or last_token(read_json(adapter / "adapter_config.json")) < 0:
        yield adapter
        return
    require_rows(adapter, rows_of(model))
    put_rows(model, read_adapter(adapter))
    with TemporaryDirectory() as folder:
        write_without_rows(adapter, Path(folder))
        yield Path(folder)


def _lora_config(
    stage: TrainingStage, model: "PreTrainedModel", rows: Sequence[NewRow]
) -> "LoraConfig":
    """Return the recipe's `lora:` as PEFT's config, with the rows of new tokens.

    Raises:
        ConfigError: it names what the model doesn't have.
    """
    assert stage.lora is not None
    if stage.lora.names_layers and (issues := layer_issues(stage.lora, model)):
        reasons = "; ".join(f"lora.{key}: {message}" for key, message in issues)
        raise ConfigError(f"stage {stage.name}: {reasons}")
    config = peft_config(stage.lora, model)
    config.trainable_token_indices = trainable_rows(model, rows)
    if rows:
        require_no_other_change(stage.lora.target_modules, model)
    if _passes_are_slow(stage):
        from dualign.training.low_rank import LowRankLinear

        config._register_custom_module({torch.nn.Linear: LowRankLinear})
    return config


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


def frozen_adapters(policy: "PeftModel") -> list[str]:
    """Return the adapters beside the one in training."""
    return [name for name in (REFERENCE_ADAPTER, FROZEN_START) if name in policy.peft_config]


def activate_policy_adapters(policy: "PeftModel") -> None:
    """Activate all adapters; only the new one is trainable.

    The new one comes first: transformers restores and trains the first of several active adapters.
    """
    frozen = frozen_adapters(policy)
    policy.base_model.set_adapter([_POLICY_ADAPTER, *frozen])
    for name in frozen:
        policy.set_requires_grad(name, requires_grad=False)


@contextmanager
def reference_in_force(policy: "PeftModel") -> Iterator[None]:
    """Compute with the model that a preference stage starts from: the earlier stage's adapter alone, or none."""
    frozen = frozen_adapters(policy)
    if not frozen:
        with policy.disable_adapter():
            yield
        return
    try:
        if REFERENCE_ADAPTER in frozen:
            policy.base_model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
            yield
        else:
            with policy.disable_adapter():
                yield
    finally:
        activate_policy_adapters(policy)
