"""Why training can't start from a model, by its files: base, adapter, the layers that `lora` names.

Reads JSON, and of an adapter its tensors. A model that isn't here (a hub id, a stage that hasn't run) is judged when
it is loaded.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualign.checkpoints.checkpoint import read_json
from dualign.checkpoints.context import stretched_config
from dualign.errors import DualignError
from dualign.model_ref import ModelRef
from dualign.models.source import ModelSource, resolve_model, why_untrainable
from dualign.training.adapter import why_not_beside
from dualign.training.config import TrainingStage
from dualign.training.parallelism import parallelism
from dualign.training.place_of_tokens import require_no_other_change, require_place
from dualign.training.positions import why_not_by_longest
from dualign.training.precision import sharding_engine

Issue = tuple[str, str]
# Keys of generation_config.json that don't keep a model from loading, whatever they say.
_HARMLESS = frozenset(
    [
        "_from_model_config",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "max_length",
        "repetition_penalty",
    ]
)
_FOLD = "fold it first: `dualign adapter fold {0} {0}-folded`, and start from that folder"


def start_issues(stage: TrainingStage) -> list[Issue]:
    """Return the reasons as (key, message)."""
    if stage.new_tokens and (engine := sharding_engine(stage)):
        says = f"rows can't be added to weights that {engine} shards: add them in a stage of one process before"
        return [("add_tokens", says)]
    ref = ModelRef.parse(stage.model, revision=stage.revision)
    if ref.path is None and not (stage.context and ref.kind == "embedded"):
        return []
    try:
        source = resolve_model(stage.model, revision=stage.revision)
        config = _base_config(source)
        _require_shareable(stage, source, config)
        return [
            *_adapter(stage, source),
            *_base(source, config),
            *_generation(source),
            *_targets(stage, source, config),
            *_new_tokens(stage, source, config),
            *_context_issues(stage, config),
        ]
    except DualignError as error:
        return [("model", str(error))]


def _context_issues(stage: Any, config: Mapping[str, Any]) -> Iterator[Issue]:
    """Refuse positions that can't be stretched so, or that a stage can't train with.

    Args:
        config: config.json of the model that it starts from; empty if it isn't here.
    """
    if not config:
        return
    if stage.context:
        cached = stage.lora is None and getattr(stage, "reference", "auto") == "cached"
        if cached and sharding_engine(stage) == "FSDP":
            says = (
                "FSDP computes a cached reference with a copy that has the positions of the files"
            )
            yield "context", f"{says}: stretch before, in a merge stage with this context"
        try:
            config = stretched_config(config, stage.context)
        except DualignError as error:
            yield "context", str(error).removeprefix("context: ")
            return
    if reason := why_not_by_longest(stage, config):
        yield "context" if stage.context else "model", reason


def _base_config(source: ModelSource) -> dict[str, Any]:
    """Return config.json of the base; {} if the base isn't here."""
    file = Path(source.base) / "config.json"
    return read_json(file) if file.is_file() else {}


def _base(source: ModelSource, config: dict[str, Any]) -> Iterator[Issue]:
    if reason := why_untrainable(config.get("model_type")):
        yield "model", f"{source.base}: {reason}; start from another model"
    if config.get("quantization_config"):
        yield (
            "model",
            f"{source.base}: the weights are already quantized; start from the 16- or 32-bit weights that "
            "they were made from (quantization: nf4 quantizes them for training)",
        )


def _generation(source: ModelSource) -> Iterator[Issue]:
    """Refuse a generation_config.json with which transformers doesn't load the model.

    What it loads and only doesn't write is repaired when the model is loaded.
    """
    file = Path(source.base) / "generation_config.json"
    if not file.is_file() or _HARMLESS.issuperset(read_json(file)):
        return
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(source.base)
    except (TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        yield "model", f"{file}: {words} Correct the file; without it the model's defaults apply"


def _adapter(stage: TrainingStage, source: ModelSource) -> Iterator[Issue]:
    """Refuse an adapter that can't stay frozen beside the one to train, with their ranks stacked at the end."""
    if source.adapter is None:
        return
    if stage.lora is None:
        yield (
            "lora",
            f"{source.adapter}: is an adapter, and full fine-tuning starts from weights; add lora to "
            "this stage, or set save: merged in the stage that trained it",
        )
        return
    config = read_json(source.adapter / "adapter_config.json")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        yield "model", f"{source.adapter}: a {kind} adapter; only LoRA adapters can be trained on"
        return
    if reason := why_not_beside(stage.lora, config):
        way_out = (
            f"set save: merged in the stage that trained it, or {_FOLD.format(source.adapter)}"
        )
        yield "model", f"{source.adapter}: {reason}; {way_out}"
        return
    from dualign.checkpoints.adapters import read_summands  # torch

    try:
        read_summands([source.adapter, source.adapter], [1.0, 1.0])
    except DualignError as error:
        yield "model", f"{error}; {_FOLD.format(source.adapter)}"


def _require_shareable(stage: TrainingStage, source: ModelSource, config: dict[str, Any]) -> None:
    """Refuse a model whose rows the processes of the launcher can't share.

    Raises:
        CheckpointError: they can't.
    """
    try:
        parts = parallelism(stage.launch).sp_size
    except (TypeError, ValueError):
        return  # said of the launcher
    if parts == 1 or not config:
        return
    from transformers import AutoConfig

    from dualign.training.attention import require_shareable  # torch and transformers

    require_shareable(stage, AutoConfig.from_pretrained(source.base), source.base)


def _new_tokens(
    stage: TrainingStage, source: ModelSource, config: dict[str, Any]
) -> Iterator[Issue]:
    """Refuse tokens that the model's tokenizer can't get, or that have no place."""
    if not stage.new_tokens:
        return
    from dualign.models.new_rows import new_rows  # torch and transformers

    text = config.get("text_config") or config
    try:
        rows = new_rows(stage.new_tokens, source)
        require_place(stage, source, text.get("vocab_size") or rows[-1].id + 1, rows)
    except DualignError as error:
        yield "add_tokens", str(error).removeprefix("add_tokens: ")


def _targets(stage: TrainingStage, source: ModelSource, config: dict[str, Any]) -> Iterator[Issue]:
    """Refuse what `lora` names and the model doesn't have, or has new rows."""
    if stage.lora is None or not stage.lora.names_layers or not config:
        return
    from dualign.checkpoints.meta_model import build_meta_model  # torch and transformers
    from dualign.checkpoints.token_rows import last_token
    from dualign.training.adapter_layers import layer_issues

    model = build_meta_model(config)
    for key, message in layer_issues(stage.lora, model):
        yield f"lora.{key}", message
    if source.adapter and last_token(read_json(source.adapter / "adapter_config.json")) >= 0:
        require_no_other_change(stage.lora.target_modules, model)
