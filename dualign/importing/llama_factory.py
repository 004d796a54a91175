"""What rows of LLaMA-Factory's table can't say: its stages, adapters, losses, tokens and launchers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualign.config import dotted, read_yaml
from dualign.importing.arguments import GONE_KTO_PAIR, assume_simpo_beta, carry_arguments
from dualign.importing.draft import Draft
from dualign.importing.launchers import launch_by_deepspeed, note_batch
from dualign.importing.llama_factory_data import fill_data, words

_KINDS = {"sft": "sft", "pt": "sft", "dpo": "preference", "kto": "preference"}
_NO_STAGES = {
    "rm": "reward models aren't trained here; one that is there can judge (docs/judges.md)",
    "ppo": "PPO isn't there; a pairs stage makes preference pairs by a judge (docs/pairs.md)",
}
_NO_METHODS = {
    "freeze": "single layers aren't frozen; finetuning_type: lora with layers_to_transform, or full",
    "oft": "OFT isn't there; finetuning_type: lora",
}
_LORA_KEYS = (
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target"),
    *("loraplus_lr_ratio", "use_rslora", "use_dora", "pissa_init", "pissa_iter", "pissa_convert"),
    *("create_new_adapter", "adapter_name_or_path"),
)
_ORPO = (
    "its likelihood of chosen answers is a mean over the tokens of the batch, so a longer answer counts for more; "
    "LLaMA-Factory takes the mean of each answer, and then that of the pairs"
)
_KTO_ROWS = 8
"""of a batch: KTO's KL is an estimate from its rows"""


def fill(draft: Draft) -> None:
    """Write what several keys say together."""
    draft.problems += [
        f"{dotted(key)}: {draft.get(*key)!r}: OmegaConf fills it in there; write its value into the file"
        for key in draft.leaves()
        if "${" in str(draft.get(*key))
    ]
    if draft.problems or not _fill_stage(draft):
        return
    _fill_model(draft)
    fill_data(draft)
    if draft.kind == "preference":
        _fill_losses(draft)
    _fill_steps(draft)
    for name in ("galore", "apollo"):
        _fill_projections(draft, name)
    if draft.kind == "sft":
        _fill_tokens(draft)
    _fill_launch(draft)
    note_batch(draft, "llamafactory-cli starts a process for each GPU by itself")
    carry_arguments(draft)


def _fill_stage(draft: Draft) -> bool:
    """Write the kind of the stage; False if there is none."""
    stage, method = draft.get("stage") or "sft", draft.get("finetuning_type") or "lora"
    for key, value, refused, known in (
        ("stage", stage, _NO_STAGES, tuple(_KINDS)),
        ("finetuning_type", method, _NO_METHODS, ("lora", "full")),
    ):
        if value not in known:
            says = refused.get(value, f"expected one of {', '.join(known)}")
            draft.problems.append(f"{key}: {value}: {says}")
    if draft.problems:
        return False
    draft.set_kind(_KINDS[stage])
    says = {"pt": "raw text", "kto": "the loss kto, on answers that are good or bad"}.get(stage, "")
    if draft.get("stage"):
        draft.carry("stage", "kind", _KINDS[stage], says)
    else:
        draft.assume("stage", "kind", _KINDS[stage])
    return True


def _fill_model(draft: Draft) -> None:
    base = draft.get("model_name_or_path")
    if not base:
        draft.problems.append("model_name_or_path: isn't there; a recipe needs the model to train")
        return
    base = draft.path(str(base)) or str(base)
    draft.carry("model_name_or_path", "model", base)
    if draft.get("finetuning_type") == "full":
        draft.carry("finetuning_type", says="every weight is trained")
        for key in _LORA_KEYS:
            if draft.get(key) is not None:
                draft.carry(key, says="has no effect with finetuning_type: full")
    else:
        _fill_adapter(draft)
    if adapters := words(draft.get("adapter_name_or_path")):
        names = [draft.path(name) or name for name in adapters]
        draft.change("adapter_name_or_path", "model", "+".join([base, *names]))
    elif "adapter_name_or_path" in draft.document.value:
        draft.carry("adapter_name_or_path", says="is empty")
    _fill_weights(draft)


def _fill_weights(draft: Draft) -> None:
    """Write the type of the weights, and their positions."""
    bits = draft.get("quantization_bit")
    if bits == 4:
        draft.change("quantization_bit", "quantization", "nf4")
    elif bits:
        draft.refuse("quantization_bit", f"{bits} bits aren't there: 4 (nf4), or 16-bit weights")
    if draft.get("pure_bf16") is True:
        draft.change("pure_bf16", "dtype", "bfloat16")
        if draft.get("finetuning_type") == "full":
            draft.put("rounded_updates", True)
    if draft.get("rope_scaling"):
        _fill_context(draft)


def _fill_adapter(draft: Draft) -> None:
    if draft.get("finetuning_type"):
        draft.carry("finetuning_type", says="lora")
    else:
        draft.assume("finetuning_type", "lora", {})
    rank = draft.number("lora_rank") or 8
    if not draft.get("lora_rank"):
        draft.assume("lora_rank", "lora.r", rank)
    else:
        draft.carry("lora_rank", "lora.r", rank)
    if not draft.get("lora_alpha"):
        draft.assume("lora_alpha", "lora.lora_alpha", 2 * rank)
    targets = words(draft.get("lora_target") or "all")
    value: Any = "all-linear" if targets == ["all"] else targets
    if draft.get("lora_target"):
        draft.carry("lora_target", "lora.target_modules", value)
    else:
        draft.assume("lora_target", "lora.target_modules", value)
    if modules := words(draft.get("additional_target")):
        draft.carry("additional_target", "lora.modules_to_save", modules)
    iterations = draft.number("pissa_iter") or 16
    if draft.get("pissa_init") is True:
        start = "pissa" if iterations == -1 else f"pissa_niter_{iterations}"
        draft.change("pissa_init", "lora.init_lora_weights", start)
    if draft.get("pissa_iter") is not None:
        has_effect = draft.get("pissa_init") is True
        draft.carry("pissa_iter", says="" if has_effect else "has no effect without pissa_init")


def _fill_context(draft: Draft) -> None:
    length = draft.get("cutoff_len") or 2048
    draft.change(
        "rope_scaling", "context", {"length": length, "rope": str(draft.get("rope_scaling"))}
    )
    if draft.has("lora") and not draft.has("quantization"):
        draft.put("save", "merged")  # an adapter names a base without these positions


def _fill_losses(draft: Draft) -> None:
    """Write the loss, or the mix of losses, of a preference stage."""
    if draft.get("stage") == "kto":
        draft.put("train.loss_type", "kto")
        _fill_kto_batch(draft)
        return
    loss, smoothing = draft.get("pref_loss") or "sigmoid", draft.number("dpo_label_smoothing") or 0
    name = _fill_main_loss(draft, loss)
    if smoothing and loss != "sigmoid":
        draft.refuse(
            "dpo_label_smoothing", f"LLaMA-Factory takes it with sigmoid alone, not {loss}"
        )
    elif smoothing:
        name = "robust"
        draft.change("dpo_label_smoothing", "train.label_smoothing", smoothing)
    names, weights = [name], [1.0]
    if bco := draft.number("pref_bco_weight") or 0:
        names, weights = [name, "bco_pair"], [round(1 / (1 + bco), 6), round(bco / (1 + bco), 6)]
        draft.change("pref_bco_weight", "train.loss_weights", weights)
    if likelihood := draft.number("pref_ftx") or 0:
        names, weights = [*names, "sft"], [*weights, likelihood]
        draft.change("pref_ftx", "train.loss_weights", weights)
    draft.put("train.loss_type", names if len(names) > 1 else name)
    if len(names) > 1:
        draft.put("train.loss_weights", weights)


def _fill_main_loss(draft: Draft, loss: str) -> str:
    """Note the loss that pref_loss names, and return its name here."""
    if loss == "kto_pair":
        draft.change("pref_loss", says=GONE_KTO_PAIR)
        return "bco_pair"
    if loss == "orpo":
        draft.change("pref_loss", "train.loss_type", loss, _ORPO)
    elif draft.get("pref_loss"):
        draft.carry("pref_loss", "train.loss_type", loss)
    else:
        draft.assume("pref_loss", "train.loss_type", loss)
    if loss == "simpo":
        assume_simpo_beta(draft, "pref_beta")
    return loss


def _fill_kto_batch(draft: Draft) -> None:
    """Move accumulation into the batch where that has one row: the rows of a step stay."""
    rows, steps = (
        draft.number("per_device_train_batch_size") or 8,
        draft.number("gradient_accumulation_steps") or 1,
    )
    if rows > 1:
        return
    batch = max(part for part in range(1, _KTO_ROWS + 1) if steps % part == 0)
    says = f"kto estimates its KL from the rows of a batch, so a batch has {max(batch, 2)}"
    draft.change(
        "per_device_train_batch_size", "train.per_device_train_batch_size", max(batch, 2), says
    )
    draft.change(
        "gradient_accumulation_steps",
        "train.gradient_accumulation_steps",
        steps // batch,
        f"{says}, and a step {max(batch, 2) * (steps // batch)} on each process, as before"
        if batch > 1
        else says,
    )


def _fill_steps(draft: Draft) -> None:
    """Write what is said of precision, checkpointing, the best step and trackers."""
    if not any(draft.get(key) for key in ("bf16", "fp16", "pure_bf16")):
        draft.change(
            "bf16",
            says="isn't there: LLaMA-Factory then computes in float32; here a GPU computes in bfloat16 "
            "(train.bf16: false turns that off)",
        )
    if (reentrant := draft.get("use_reentrant_gc")) is not None:
        key = "train.gradient_checkpointing_kwargs"
        draft.change("use_reentrant_gc", key, {"use_reentrant": bool(reentrant)})
    if patience := draft.get("early_stopping_steps"):
        draft.change("early_stopping_steps", "early_stopping", {"patience": patience})
        for key in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
            if draft.get(key) is not None:
                draft.carry(key, says="early_stopping publishes the step of the best held-out loss")
    if draft.get("use_swanlab") is True:
        others = draft.get("report_to")
        listed = [others] if isinstance(others, str) else list(others or [])
        trackers = [name for name in listed if name not in ("none", "swanlab")]
        draft.change("use_swanlab", "train.report_to", ["swanlab", *trackers])
        if others is not None:
            draft.carry("report_to", says="beside swanlab")


def _fill_projections(draft: Draft, name: str) -> None:
    """Write GaLore or APOLLO as transformers' optimizer of that name."""
    keys = [
        key for key in draft.table.rows if key.startswith(f"{name}_") and draft.get(key) is not None
    ]
    if draft.get(f"use_{name}") is not True:
        for key in keys:
            draft.carry(key, says=f"has no effect without use_{name}")
        return
    layers = words(draft.get(f"{name}_target") or "all")
    settings = {
        "rank": draft.get(f"{name}_rank") or 16,
        "update_proj_gap": draft.get(f"{name}_update_interval") or 200,
        "scale": draft.get(f"{name}_scale") or {"galore": 2.0, "apollo": 32.0}[name],
        "proj_type": draft.get(f"{name}_proj_type") or "std",
    }
    if name == "apollo":
        settings["proj"] = draft.get("apollo_proj") or "random"
        settings["scale_type"] = draft.get("apollo_scale_type") or "channel"
    base = str(draft.get("optim") or "adamw_torch")
    kind = "_8bit" if "8bit" in base and name == "galore" else ""
    family = "adafactor" if base == "adafactor" and name == "galore" else "adamw"
    layerwise = "_layerwise" if draft.get(f"{name}_layerwise") is True else ""
    draft.change(f"use_{name}", "train.optim", f"{name}_{family}{kind}{layerwise}")
    if draft.get("optim"):
        draft.carry("optim", says=f"in the name of {name}'s optimizer")
    for key in keys:
        if draft.table.rows[key].action == "carried":
            draft.carry(key, draft.table.rows[key].target)
    draft.put("train.optim_target_modules", "all-linear" if layers == ["all"] else layers)
    draft.put("train.optim_args", ", ".join(f"{key}={value}" for key, value in settings.items()))


def _fill_tokens(draft: Draft) -> None:
    """Write new words; a file with descriptions comes before a list without, as there."""
    tokens: list[Any] = []
    if plain := words(draft.get("add_tokens")):
        tokens += plain
        draft.change("add_tokens", "add_tokens", tokens)
    if file := draft.get("new_special_tokens_config"):
        place = draft.find(str(file))
        if place is None:
            draft.refuse("new_special_tokens_config", f"{file}: no such file; {_BY_HAND}")
        else:
            tokens += _described(place)
            draft.change("new_special_tokens_config", "add_tokens", tokens)
        if draft.get("add_special_tokens"):
            draft.carry("add_special_tokens", says="has no effect beside new_special_tokens_config")
    elif special := words(draft.get("add_special_tokens")):
        tokens += [{"text": token, "special": True} for token in special]
        draft.change("add_special_tokens", "add_tokens", tokens)


_BY_HAND = "write its tokens into add_tokens: {text: ..., description: ..., special: true}"


def _described(file: Path) -> Sequence[Any]:
    document = read_yaml(file)
    document.raise_problems()
    return [
        {"text": str(token), "description": str(text), "special": True}
        for token, text in document.value.items()
    ]


def _fill_launch(draft: Draft) -> None:
    if draft.get("deepspeed"):
        launch_by_deepspeed(draft)
    file = draft.stage.get("launch")
    for key, ours in (("master_addr", "main_process_ip"), ("master_port", "main_process_port")):
        value = draft.get(key)
        if value is not None and file is None:
            draft.carry(key, says="has no effect without several processes")
        elif value is not None:
            if isinstance(draft.stage["launch"], str):
                draft.stage["launch"] = {"config_file": file}
            port = ours.endswith("port")
            draft.carry(key, f"launch.{ours}", int(value) if port else str(value))
