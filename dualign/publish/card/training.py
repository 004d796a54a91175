"""The settings of each stage in a line, and what it gained in the sentences of the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dualign.evaluation.scores import short_label
from dualign.model_ref import StageRef
from dualign.publish.lineage import Lineage
from dualign.publish.redaction import redact, redact_text
from dualign.report.conclusions import margin_findings, step_finding, steps, training_findings
from dualign.report.retention import retention_findings
from dualign.report.runs import ModelEvaluation
from dualign.stages import stage_kind

_TRAIN = (
    "loss_type", "beta", "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "weight_decay", "max_grad_norm", "optim", "bf16",
)  # fmt: skip

_SAMPLING = (
    "samples", "tries", "choose", "answer", "answer_first", "temperature", "top_p", "max_new_tokens",
)  # fmt: skip


def hyper_parameters(record: Mapping[str, Any]) -> str:
    """Return the settings of a stage that the card shows; "" for a stage with none of these keys.

    `LoRA r 16, alpha 32; learning_rate 0.001, ...; 96 steps; template dualign`; for a merge
    `linear: 0.9 x apo + 0.1 x sft`; for rows that a model wrote `rows by Qwen3-32B; tries 4, ...`.
    """
    config: Mapping[str, Any] = record.get("config") or {}
    if "search" in config:
        return f"{config['search']} over {', '.join(config.get('vary') or ()) or 'the models'}"
    if "method" in config:
        return _merge(config)
    if stage_kind(str(record.get("kind"))).generates_rows:
        return f"rows by {' and '.join(_writers(record))}; {_chosen(config, _SAMPLING)}"
    if "train" not in config:
        return ""
    train: Mapping[str, Any] = config.get("train") or {}
    data: Mapping[str, Any] = config.get("data") or {}
    metrics: Mapping[str, Any] = record.get("metrics") or {}
    steps_done, dtype = metrics.get("steps"), metrics.get("dtype", config.get("dtype"))
    words = new_tokens(record)
    parts = [
        _adapter(config),
        f"new tokens {', '.join(words)}" if words else "",
        _positions(config),
        _chosen(train, _TRAIN),
        f"{steps_done} steps" if steps_done else "",
        _chosen(data, ("max_tokens", "packing", "supervise")),
        f"template {config.get('template')}, {dtype}, seed {record.get('seed')}",
    ]
    return "; ".join(part for part in parts if part)


def new_tokens(record: Mapping[str, Any]) -> list[str]:
    """Return the texts of the tokens that a stage added."""
    listed = (record.get("config") or {}).get("add_tokens") or ()
    return [str(word["text"]) if isinstance(word, Mapping) else str(word) for word in listed]


def _writers(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the models that wrote a stage's rows; no address of a server."""
    config: Mapping[str, Any] = record.get("config") or {}
    asked: Mapping[str, Any] = (record.get("metrics") or {}).get("endpoints") or {}
    reviser = (config.get("revise") or {}).get("model")
    for model in filter(None, (config.get("model"), config.get("rejected_model"), reviser)):
        text = str(model["url"] if isinstance(model, Mapping) else model)
        answered = (entry.get("name") for entry in asked.values() if entry.get("url") == text)
        name = str(model.get("name") or "") if isinstance(model, Mapping) else ""
        name = name or str(next(answered, text))
        stage = StageRef.parse(name)
        yield stage.label if stage else redact_text(name, {})


def _adapter(config: Mapping[str, Any]) -> str:
    lora: Mapping[str, Any] = config.get("lora") or {}
    if not lora:
        return "all weights"
    kinds = [
        name for name, key in (("DoRA", "use_dora"), ("rsLoRA", "use_rslora")) if lora.get(key)
    ]
    on = f" on a base in {config['quantization']}" if config.get("quantization") else ""
    name = " ".join(kinds) or "LoRA"
    return f"{name} r {lora.get('r')}, alpha {lora.get('lora_alpha')}{_beside(lora)}{on}"


def _beside(lora: Mapping[str, Any]) -> str:
    """Return what else an adapter's settings say: its start, other ranks, what is trained beside it."""
    start, bias, ratio = (
        lora.get(key) for key in ("init_lora_weights", "bias", "loraplus_lr_ratio")
    )
    parts = [f"start {start}" if isinstance(start, str) else ""]
    for key in ("rank_pattern", "alpha_pattern"):
        values = lora.get(key) or {}
        parts.append(", ".join(f"{key} {name}: {value}" for name, value in values.items()))
    for key in ("layers_to_transform", "modules_to_save"):
        values = lora.get(key) or ()
        parts.append(f"{key} {' '.join(map(str, values))}" if values else "")
    parts += [f"bias {bias}" if bias not in (None, "none") else ""]
    parts += [f"LoRA+ ratio {ratio:g}" if ratio else ""]
    return "".join(f", {part}" for part in parts if part)


def _merge(config: Mapping[str, Any]) -> str:
    parts = []
    for model in config.get("models") or ():
        stage = StageRef.parse(str(model.get("model")))
        name = stage.label if stage else str(model.get("model"))
        weight = model.get("weight")
        parts.append(f"{weight:g} x {name}" if weight is not None else name)
    merged = f"{config.get('method')}: {' + '.join(parts)}"
    return "; ".join(filter(None, (merged, _positions(config))))


def _positions(config: Mapping[str, Any]) -> str:
    """Return what a stage's `context` makes of the positions; "" without one."""
    context: Mapping[str, Any] = config.get("context") or {}
    return f"{context['length']:,} positions by {context['rope']}" if context else ""


def _chosen(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {_plain(values[key])}" for key in keys if values.get(key) is not None)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def stage_findings(
    lineage: Lineage, models: Sequence[ModelEvaluation], names: Mapping[str, str]
) -> Iterator[str]:
    """Yield what each stage gained in accuracy, loss and margins, in the sentences of the report.

    Args:
        names: path on this machine -> its public name.
    """
    stage_names = {stage.name for stage in lineage.stages}
    step_of = {short_label(s.after.scores.model): s for s in steps(models, lineage.stages)}
    for stage in lineage.stages:
        if stage.name in step_of:
            yield step_finding(step_of[stage.name])
        yield from training_findings(stage)
        yield from retention_findings(stage)
    for evaluation in lineage.evaluations:
        for text in margin_findings(redact(evaluation.metrics or {}, names)):
            if text.split(" against ")[0] in stage_names:
                yield text
