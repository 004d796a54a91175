"""From a reference to a loaded model: for training, and as its users load it.

peft is imported where there is an adapter: that takes more than a second.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from dualign.checkpoints.context import ContextConfig, stretched_config
from dualign.errors import CheckpointError
from dualign.models.generation_config import valid_generation_config
from dualign.models.new_rows import require_rows, rows_of
from dualign.models.source import ModelSource, resolve_model, why_untrainable
from dualign.models.tokenizer import load_chat_tokenizer
from dualign.rundir import read_run

if TYPE_CHECKING:
    from peft import PeftModel


def load_base(
    source: ModelSource,
    *,
    dtype: str,
    attn_implementation: str,
    nf4: bool,
    on_cpu: bool = False,
    context: ContextConfig | None = None,
) -> PreTrainedModel:
    """Load the base for training; with `nf4` it is quantized as it loads.

    Args:
        on_cpu: the trainer stays on the CPU, also where there is a GPU.
        context: the positions that it gets.

    Raises:
        CheckpointError: the weights are already quantized, can't be trained, or can't be stretched.
    """
    config = AutoConfig.from_pretrained(source.base, revision=source.revision)
    if reason := why_untrainable(config.model_type):
        raise CheckpointError(f"{source.base}: {reason}; start from another model")
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{source.base}: the weights are already quantized; start from 16- or 32-bit weights"
        )
    stretched: dict[str, Any] = {}
    if context is not None:
        _stretch(config, context)
        stretched = {"config": config}
    cuda = torch.cuda.is_available() and not on_cpu
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        source.base,
        revision=source.revision,
        dtype=getattr(torch, dtype),
        attn_implementation=attn_implementation,
        **stretched,
        **(nf4_options(dtype, device) if nf4 else {}),
    )
    _keep_order_of_weights(model)
    model.config.use_cache = False
    text = model.config.get_text_config()
    if getattr(text, "num_local_experts", None) == 0:
        # Dense, but of a class with experts (Granite 4.0 Micro): TRL would ask it for a router's loss.
        text.router_aux_loss_coef = 0.0
    model.generation_config = valid_generation_config(model.generation_config)
    return model


def _stretch(config: PreTrainedConfig, context: ContextConfig) -> None:
    """Give a configuration more positions.

    Raises:
        CheckpointError: it can't be stretched so.
    """
    before = config.to_dict()
    after = stretched_config(before, context)
    for key in after:
        if after[key] != before.get(key):
            setattr(config, key, after[key])


def nf4_options(dtype: str, device: str) -> dict[str, Any]:
    """Return `from_pretrained` options: NF4, double quantization (QLoRA, arXiv 2305.14314)."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _keep_order_of_weights(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from reordering NF4 weights, if there are any, at the first forward in evaluation mode.

    It does so on CPUs with AVX512-BF16, and its backward pass (0.49) reads them in the old order:
    after an evaluation, or a reference that was computed first, gradients would be wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_checkpoint(
    model: ModelSource | str | Path, **options: Any
) -> "PreTrainedModel | PeftModel":
    """Load a model, or an adapter on its base, in evaluation mode.

    Adapters go through PEFT: transformers' own loading of an adapter folder (5.23) leaves DoRA's
    magnitudes at their start.

    Args:
        options: of the base's `from_pretrained`.
    """
    source = model if isinstance(model, ModelSource) else resolve_model(model)
    base = AutoModelForCausalLM.from_pretrained(source.base, revision=source.revision, **options)
    _keep_order_of_weights(base)
    if source.adapter is None:
        return base.eval()
    require_rows(source.adapter, rows_of(base))
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(source.adapter)).eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalModel:
    """A model to evaluate: a checkpoint, or a live one whose weights somebody sets."""

    model: str
    """its name in tables"""
    identity: str
    """changes when the weights do"""
    tokenizer: PreTrainedTokenizerBase
    weights: Callable[[], PreTrainedModel]
    """called when the weights are needed, which may be never"""


def open_model(reference: str, *, dtype: str = "auto") -> EvalModel:
    """Open a checkpoint for evaluation; its weights are loaded once, when they are first needed."""
    return EvalModel(
        model=reference,
        identity=identity(reference),
        tokenizer=load_chat_tokenizer(reference),
        weights=cache(lambda: load_model(reference, dtype=dtype)),
    )


def load_model(reference: str, *, dtype: str = "auto") -> PreTrainedModel:
    """Load a model for inference, on the accelerator if there is one.

    Args:
        dtype: `auto` is the checkpoint's own on an accelerator and float32 on a CPU, where bfloat16
            is slow.
    """
    source = resolve_model(reference)
    model = load_checkpoint(source, dtype=_resolved(dtype))
    # In 16 bits, folding would round part of the adapter away: there it stays beside the weights.
    if source.adapter is not None and model.dtype == torch.float32:
        model = cast("PeftModel", model).merge_and_unload()
    return _placed(model)


def empty_model(folder: Path, *, dtype: str = "auto") -> PreTrainedModel:
    """Build the model of a folder's config.json and generation_config.json, without its weights.

    The parameters are uninitialized memory: set every one before use. `dtype` and device are those
    of `load_model`.
    """
    config = AutoConfig.from_pretrained(folder)
    dtype = _resolved(dtype)
    weights_dtype = config.dtype if dtype == "auto" else getattr(torch, dtype)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=weights_dtype or torch.float32)
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return _placed(model.eval())


def _resolved(dtype: str) -> str:
    return "float32" if dtype == "auto" and not torch.accelerator.is_available() else dtype


def _placed(model: PreTrainedModel) -> PreTrainedModel:
    if not torch.accelerator.is_available():
        return model
    return model.to(torch.accelerator.current_accelerator())


def identity(reference: str) -> str:
    """Return text that changes when the weights do.

    It is the run's fingerprint, else a hash of the files' names, sizes and times.
    """
    source = resolve_model(reference)
    folder = Path(source.folder)
    if not folder.is_dir():
        return f"{source.folder}@{source.revision}"
    fingerprint = read_run(folder).get("fingerprint")
    if fingerprint:
        return str(fingerprint)
    folders = {folder, Path(source.base)} if Path(source.base).is_dir() else {folder}
    files = [
        file for place in sorted(folders) for file in sorted(place.iterdir()) if file.is_file()
    ]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
