"""How axolotl trains -> our keys: adapter, packing, steps, checkpoints, trackers, new tokens."""

from typing import Any

from dualign.importing.axolotl_data import is_text
from dualign.importing.draft import Draft, is_off

_ADAPTER_KEYS = [
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_linear",
    "lora_modules_to_save",
    "lora_rank_pattern",
    "lora_alpha_pattern",
    "peft_layers_to_transform",
    "peft_use_dora",
    "peft_use_rslora",
    "peft_init_lora_weights",
    "loraplus_lr_ratio",
    "lora_model_dir",
]
_TRACKERS = {
    "use_wandb": "wandb",
    "use_mlflow": "mlflow",
    "use_comet": "comet_ml",
    "use_trackio": "trackio",
    "use_tensorboard": "tensorboard",
    "use_swanlab": "swanlab",
}


_ROUNDED = "a share of all steps is rounded up; axolotl rounds down, and makes two steps of one"
_STEPS = (
    "axolotl counts the steps beforehand, over all epochs together (rows x epochs / batch, rounded up; with packing "
    "without a last row that isn't full); here each epoch ends with a step of the rows that are left, so there may be more"
)


def fill_adapter(draft: Draft) -> None:
    """Write the adapter, or say that its keys have no effect."""
    adapter = draft.get("adapter")
    if is_off(adapter):
        for key in _ADAPTER_KEYS:
            if draft.get(key) is not None:
                draft.carry(key, says="has no effect without adapter, in axolotl neither")
        return
    if adapter not in ("lora", "qlora"):
        draft.refuse(
            "adapter",
            f"{adapter}: isn't there, so every weight would train: set lora, or another base",
        )
        return
    draft.put("lora", {})
    draft.change("adapter", "lora")
    if adapter == "qlora":
        draft.change("adapter", "quantization", "nf4", "qlora is quantization: nf4")
    _fill_layers(draft)


def _fill_layers(draft: Draft) -> None:
    """Say the ranks of an adapter, and which layers get one."""
    for key in ("lora_r", "lora_alpha"):
        if draft.get(key) is None:
            draft.refuse(
                key, "isn't there, and axolotl needs it: dualign's own counts (docs/lora.md)"
            )
    if draft.get("lora_target_linear"):
        draft.carry("lora_target_linear", "lora.target_modules", "all-linear")
        if draft.get("lora_target_modules"):
            draft.carry("lora_target_modules", says="is among all linear layers")
    elif draft.get("lora_target_linear") is not None:
        draft.carry("lora_target_linear", says="lora_target_modules says which")
    if not draft.get("lora_target_linear") and not draft.get("lora_target_modules"):
        draft.refuse(
            "lora_target_modules",
            "isn't there: axolotl takes PEFT's layers of the family, dualign all-linear",
        )


def fill_packing(draft: Draft) -> None:
    """Say how rows are packed, and whether they are a stream."""
    texts = [is_text(draft, place) for place in draft.sources]
    if draft.kind == "preference":
        for key in ("sample_packing", "eval_sample_packing", "train_on_inputs"):
            if draft.get(key) is not None:
                draft.carry(
                    key,
                    says="pairs are never packed, and their answers alone are learned, as there",
                )
    elif texts and all(texts):
        says = (
            "documents are cut every max_tokens and their pieces fill rows; axolotl cuts each document by itself, and "
            "the last piece is short"
        )
        if draft.get("sample_packing") is not None:
            draft.change("sample_packing", "data.packing", "wrapped", says)
        else:
            draft.assume("sample_packing", "data.packing", "wrapped", says)
    elif draft.get("sample_packing") is None:
        draft.assume("sample_packing", "data.packing", "none")
    if any(texts) and not all(texts):
        draft.change(
            "sequence_len",
            "data.max_tokens",
            draft.get("sequence_len") or 512,
            "a document that is longer is left out; axolotl cuts it",
        )
    _fill_stream(draft)


def _fill_stream(draft: Draft) -> None:
    """Say whether rows are a stream, and how many are shuffled together."""
    streams = draft.get("streaming") is True or bool(draft.get("pretraining_dataset"))
    for key in ("streaming_multipack_buffer_size", "pretrain_multipack_buffer_size"):
        if draft.get(key) is not None and not streams:
            draft.carry(key, says="has no effect without a stream, in axolotl neither")
    if streams and draft.get("streaming") is not False:
        draft.put("data.streaming", True)
        if draft.get("streaming") is not None:
            draft.change("streaming")


def fill_plugins(draft: Draft) -> None:
    """Name each plugin."""
    plugins, row = draft.get("plugins"), draft.table.row(("plugins",))
    for plugin in plugins if isinstance(plugins, list) else ():
        entry = row.values.get(str(plugin).lower()) if row else None
        if entry:
            draft.carry("plugins", says=f"{str(plugin).rpartition('.')[2]}: {entry['says']}")
        elif row:
            draft.refuse("plugins", f"{plugin} {row.says}")


def fill_steps(draft: Draft) -> None:
    """Write rate, schedule, warm-up and batch."""
    if draft.get("learning_rate") is None:
        draft.refuse(
            "learning_rate",
            "isn't there, and axolotl needs it: TRL's default counts, so set train.learning_rate",
        )
    elif (rate := draft.number("learning_rate")) is not None:
        draft.carry("learning_rate", "train.learning_rate", rate)
    _fill_warmup(draft)
    micro, total = draft.number("micro_batch_size") or 1, draft.number("batch_size")
    if total and not draft.get("gradient_accumulation_steps"):
        draft.change("batch_size", "train.gradient_accumulation_steps", max(1, int(total // micro)))
    elif total:
        draft.carry("batch_size", says="gradient_accumulation_steps says it, in axolotl too")
    elif not draft.get("gradient_accumulation_steps"):
        draft.assume("gradient_accumulation_steps", "train.gradient_accumulation_steps", 1)
    _fill_schedule(draft)
    if draft.get("max_steps") is None:
        draft.change("(steps)", says=_STEPS)
    if draft.has("data.streaming"):
        if draft.get("num_epochs") is not None:
            draft.carry(
                "num_epochs", says="a stream has no epochs: max_steps ends it, in axolotl too"
            )
        draft.no_defaults.add("num_epochs")


def _fill_schedule(draft: Draft) -> None:
    """Say the schedule whose end isn't 0."""
    least = draft.get("cosine_min_lr_ratio")
    if least is not None:
        if draft.get("lr_scheduler") in (None, "cosine"):
            if draft.get("lr_scheduler"):
                draft.carry("lr_scheduler", "train.lr_scheduler_type", "cosine_with_min_lr")
            draft.put("train.lr_scheduler_type", "cosine_with_min_lr")
            if draft.get("lr_scheduler_kwargs") is not None:
                draft.refuse("lr_scheduler_kwargs", "cosine_min_lr_ratio says the schedule")
            draft.carry("cosine_min_lr_ratio", "train.lr_scheduler_kwargs", {"min_lr_rate": least})
        else:
            draft.carry(
                "cosine_min_lr_ratio",
                says="has no effect beside another schedule, in axolotl neither",
            )


def _fill_warmup(draft: Draft) -> None:
    steps, ratio = draft.get("warmup_steps"), draft.get("warmup_ratio")
    if steps is not None and ratio is not None:
        draft.refuse("warmup_ratio", "warmup_steps is given too, and axolotl takes that")
    elif steps is None and ratio is None:
        draft.assume(
            "warmup_ratio",
            "train.warmup_steps",
            0.03,
            "isn't there: axolotl warms up for 3 % of the steps, and at most 100, which a share can't say",
        )
    elif steps is None:
        draft.change("warmup_ratio", "train.warmup_steps", ratio, _ROUNDED)


def fill_saving(draft: Draft) -> None:
    """Say when checkpoints are written and held-out rows measured."""
    epochs = draft.number("num_epochs") or 1.0
    _share(draft, "saves_per_epoch", "save_steps", epochs)
    validates = bool(draft.get("val_set_size")) or bool(draft.get("test_datasets"))
    measures = (
        "eval_steps",
        "evals_per_epoch",
        "eval_strategy",
        "evaluation_strategy",
        "eval_batch_size",
    )
    if not validates:
        for key in (*measures, "early_stopping_patience", "load_best_model_at_end"):
            if draft.get(key) is not None:
                draft.carry(key, says="has no effect without held-out rows, in axolotl neither")
        return
    _share(draft, "evals_per_epoch", "eval_steps", epochs)
    if draft.get("eval_steps"):
        draft.put("train.eval_strategy", "steps")
    if draft.get("eval_strategy") is False:
        draft.carry("eval_strategy", "train.eval_strategy", "no")
    if draft.get("eval_steps") or draft.has("train.eval_steps") or draft.get("eval_strategy"):
        draft.assume("eval_on_start", "train.eval_on_start", True)
    if draft.get("eval_batch_size") is None:
        size = draft.number("micro_batch_size") or 1
        draft.assume("eval_batch_size", "train.per_device_eval_batch_size", size)


def _share(draft: Draft, key: str, steps: str, epochs: Any) -> None:
    """Turn a count for each epoch into a share of all steps, and say the strategy."""
    count, strategy = draft.number(key), f"train.{steps.split('_')[0]}_strategy"
    if draft.get(steps):
        draft.put(strategy, "steps")
        if count is not None:
            draft.refuse(key, f"{steps} is given too: expected one of them")
    elif count:
        share = 1.0 / (count * epochs)
        if share < 1:
            draft.put(strategy, "steps")
            draft.carry(key, f"train.{steps}", share)
        else:
            draft.carry(
                key,
                says="isn't above 1 for the whole run: axolotl takes no notice of it, and neither does the recipe",
            )


def fill_trackers(draft: Draft) -> None:
    """Say which trackers a run reports to."""
    names = []
    for key, name in _TRACKERS.items():
        implied = key == "use_wandb" and draft.get("wandb_project") and draft.get(key) is None
        if draft.get(key):
            draft.carry(key, "train.report_to")
        if draft.get(key) or implied:
            names.append(name)
    if names:
        draft.put("train.report_to", names if len(names) > 1 else names[0])
        return
    for key in (
        "wandb_project",
        "wandb_name",
        "trackio_project_name",
        "trackio_run_name",
        "trackio_space_id",
        "mlflow_run_name",
    ):
        if draft.get(key) is not None:
            draft.carry(key, says="has no effect without its tracker")


def fill_tokens(draft: Draft) -> None:
    """Add the new tokens of both keys."""
    texts, plain = draft.get("special_tokens", "additional_special_tokens"), draft.get("tokens")
    added = [{"text": str(text), "special": True} for text in _listed(texts)]
    plain = [str(token) for token in _listed(plain)]
    if draft.kind != "sft" or not (added or plain):
        return
    draft.put("add_tokens", [*plain, *added])
    if plain:
        draft.change("tokens", "add_tokens")
    if added:
        draft.carry(("special_tokens", "additional_special_tokens"), "add_tokens")


def _listed(value: Any) -> list[Any]:
    """Return a list as it is, one value as a list, and nothing as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]
