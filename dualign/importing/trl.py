"""What rows of TRL's table can't say: which script a file is for, adapters, losses, the template."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualign.importing.arguments import GONE_KTO_PAIR, assume_simpo_beta, carry_arguments
from dualign.importing.draft import Draft
from dualign.importing.launchers import launch_by_deepspeed, note_batch
from dualign.importing.trl_data import fill_data

SCRIPTS = ("sft", "dpo", "kto", "orpo", "cpo")
"""Scripts whose files are read; a file doesn't say which one it is for."""
_KEYS: Mapping[str, tuple[str, ...]] = {
    "sft": (
        *("packing", "packing_strategy", "eval_packing", "assistant_only_loss", "max_seq_length"),
        *("completion_only_loss", "dataset_text_field", "chat_template_path", "shuffle_dataset"),
        *("text_column", "dataset_kwargs", "eos_token"),
    ),
    "kto": ("desirable_weight", "undesirable_weight"),
    "cpo": ("cpo_alpha", "simpo_gamma"),
    "dpo": (
        *("precompute_ref_log_probs", "rpo_alpha", "loss_weights", "f_divergence_type"),
        *("discopop_tau", "use_weighting", "sync_ref_model", "ref_model_init_kwargs", "ld_alpha"),
        *("reference_free", "label_smoothing", "precompute_ref_batch_size"),
    ),
}
"""Keys that one script alone has."""
_OF_PREFERENCES = ("beta", "max_prompt_length", "max_completion_length")
_LOSSES = {"nll": "sft", "dft": "sft", "chunked_nll": "sft", "simpo": "cpo", "alphapo": "cpo"}
_LOSSES |= {"kto": "kto", "apo_zero_unpaired": "kto"}
_WORDS = {"sft": "sft", "dpo": "dpo", "apo": "dpo", "kto": "kto", "orpo": "orpo", "cpo": "cpo"}
_WORDS |= {"simpo": "cpo", "mid": "sft"}
"""Words in the path of a file that say what it is for, as recipes/zephyr/dpo/config.yaml does."""
_OTHER_SCRIPTS = {
    "num_generations": "GRPO",
    "reward_model_name_or_path": "a trainer with a reward model",
    "reward_funcs": "GRPO",
    "center_rewards_coefficient": "a reward model",
    "num_sample_generations": "PPO",
    "teacher_model_name_or_path": "distillation",
}
_LORA_KEYS = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
    *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
)
_OLD_LOSSES = {"kto_pair": "bco_pair", "aot_pair": "aot", "bco": "bco_pair"}


def fill(draft: Draft) -> None:
    """Write what several keys say together."""
    script = _script(draft)
    if script is None:
        return
    _fill_model(draft)
    fill_data(draft)
    if draft.kind == "preference":
        _fill_losses(draft, script)
    _fill_template(draft)
    if draft.get("deepspeed") and draft.has("launch"):
        draft.carry("deepspeed", says="the accelerate file of --launch counts")
    elif draft.get("deepspeed"):
        launch_by_deepspeed(draft)
    note_batch(draft, "accelerate starts processes there")
    carry_arguments(draft)


def _script(draft: Draft) -> str | None:
    """Return the script of a file, and set the kind of the stage; None, with a problem, if that isn't clear."""
    for key, what in _OTHER_SCRIPTS.items():
        if draft.get(key) is not None:
            draft.problems.append(f"{key}: is of {what}, which isn't there (docs/preference.md)")
            return None
    chosen = draft.script or _by_keys(draft)
    if chosen is None:
        return None
    kind = "sft" if chosen == "sft" else "preference"
    draft.set_kind(kind)
    says = "said by --script" if draft.script else f"by its keys and its path: {chosen}.py"
    draft.assume("(script)", "kind", kind, says)
    return chosen


def _by_keys(draft: Draft) -> str | None:
    signs = {
        script: [key for key in keys if draft.get(key) is not None]
        for script, keys in _KEYS.items()
    }
    for name in _losses(draft):
        signs.setdefault(_LOSSES.get(name, "dpo"), []).append("loss_type")
    scripts = [script for script, keys in signs.items() if keys]
    parts = [
        part for folder in Path(draft.document.file).resolve().parts[-4:] for part in _split(folder)
    ]
    named = list(dict.fromkeys(_WORDS[part] for part in parts if part in _WORDS))
    if len(scripts) == 1:
        return scripts[0]
    if {"cpo", "dpo"} == set(scripts) and "label_smoothing" in signs["dpo"]:
        return "cpo"
    preferences = [key for key in _OF_PREFERENCES if draft.get(key) is not None]
    if not scripts and preferences:
        return named[-1] if named and named[-1] != "sft" else "dpo"
    if not scripts and named:
        return named[-1]
    signs_text = "; ".join(f"{script}: {', '.join(keys)}" for script, keys in signs.items() if keys)
    draft.problems.append(
        f"TRL's files don't say which script they are for, and this one's keys don't tell "
        f"({signs_text or 'no key is of one script alone'}): add --script with one of {', '.join(SCRIPTS)}"
    )
    return None


def _losses(draft: Draft) -> list[str]:
    """Return the losses that a file names."""
    value = draft.get("loss_type")
    return (
        [str(name) for name in value] if isinstance(value, list) else [str(value)] if value else []
    )


def _split(name: str) -> list[str]:
    for mark in "-_.":
        name = name.replace(mark, " ")
    return name.lower().split()


def _fill_model(draft: Draft) -> None:
    base = draft.get("model_name_or_path")
    if not base:
        draft.problems.append("model_name_or_path: isn't there; a recipe needs the model to train")
        return
    draft.carry("model_name_or_path", "model", draft.path(str(base)) or str(base))
    _fill_adapter(draft)
    if draft.get("load_in_4bit") is True:
        draft.change("load_in_4bit", "quantization", "nf4")
    for key in ("dtype", "torch_dtype"):
        value = draft.get(key)
        if value in ("bfloat16", "float16") and not draft.has("lora"):
            draft.change(
                key,
                says=f"full fine-tuning of {value} weights rounds most of each update away; here they are "
                f"float32 under autocast (dtype: {value} with rounded_updates: true is the original)",
            )
        elif value == "auto":
            draft.carry(key, says="by device, as without the key")
        elif value:
            draft.carry(key, "dtype", value)
    if not (draft.has("quantization") or draft.get("dtype") or draft.get("torch_dtype")):
        draft.assume("dtype", "dtype", "float32")
    attention = draft.get("attn_implementation")
    if attention and str(attention) not in draft.table.rows["attn_implementation"].values:
        draft.change("attn_implementation")


def _fill_adapter(draft: Draft) -> None:
    if draft.get("use_peft") is not True:
        for key in _LORA_KEYS:
            if draft.get(key) is not None:
                draft.carry(key, says="has no effect without use_peft: true")
        return
    draft.carry("use_peft", says="lora")
    draft.put("lora", {})
    for key, ours in (
        ("lora_r", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
    ):
        if (value := draft.get(key)) is not None:
            draft.carry(key, f"lora.{ours}", value)
    if draft.get("lora_dropout") is None:
        draft.assume("lora_dropout", "lora.lora_dropout", 0.05)
    targets = draft.get("lora_target_modules")
    if isinstance(targets, list) and len(targets) == 1 and targets[0] == "all-linear":
        targets = targets[0]
    if targets:
        draft.carry("lora_target_modules", "lora.target_modules", targets)
    else:
        draft.change(
            "lora_target_modules",
            "lora.target_modules",
            "all-linear",
            "isn't there: PEFT then takes q_proj and v_proj of most families; here every linear layer",
        )


def _fill_losses(draft: Draft, script: str) -> None:
    """Write the loss, or the mix of losses."""
    names = _losses(draft)
    if script in ("kto", "orpo"):
        name = names[0] if names else script
        draft.put("train.loss_type", name)
        if script == "orpo":
            says = (
                "the likelihood is that of the answer, and TRL's ORPOTrainer counts the prompt too"
            )
            draft.change("loss_type", "train.loss_type", name, says)
        else:
            draft.carry("loss_type", "train.loss_type", name, "kto.py's")
        return
    if script == "cpo":
        _fill_cpo(draft, names[0] if names else "sigmoid")
        return
    smoothing = draft.number("label_smoothing") or 0
    ours = [_OLD_LOSSES.get(name, name) for name in names or ["sigmoid"]]
    if smoothing and "sigmoid" in ours:
        ours = ["robust" if name == "sigmoid" else name for name in ours]
        draft.change(
            "label_smoothing",
            "train.label_smoothing",
            smoothing,
            "cDPO isn't there: the loss robust takes the same share of wrong labels, and corrects for it (with "
            "sigmoid TRL 1.16 takes no notice of the key; releases before had cDPO)",
        )
    listed = draft.get("loss_weights")
    weights = list(listed) if isinstance(listed, list) else [1.0] * len(ours)
    if alpha := draft.number("rpo_alpha"):
        ours, weights = [*ours, "sft"], [*weights, alpha]
        draft.change("rpo_alpha", "train.loss_weights")
    value: Any = ours if len(ours) > 1 else ours[0]
    if not names:
        draft.assume("loss_type", "train.loss_type", value)
    elif ours[: len(names)] == names:
        draft.carry("loss_type", "train.loss_type", value)
    else:
        says = GONE_KTO_PAIR if "kto_pair" in names else f"called {', '.join(ours)} here"
        draft.change("loss_type", "train.loss_type", value, says)
    draft.put("train.loss_type", value)
    if len(ours) > 1:
        draft.put("train.loss_weights", weights)
        if draft.get("loss_weights"):
            draft.carry("loss_weights", "train.loss_weights", weights)


def _fill_cpo(draft: Draft, loss: str) -> None:
    """Write CPO, or SimPO, to which CPOTrainer adds the likelihood of chosen unless cpo_alpha is 0."""
    alpha = draft.number("cpo_alpha")
    weight = 1.0 if alpha is None else alpha
    if loss == "sigmoid":
        draft.carry("loss_type", "train.loss_type", "cpo", "cpo.py's sigmoid")
        return
    if loss != "simpo":
        draft.refuse("loss_type", f"{loss} of cpo.py isn't there: cpo and simpo are; cpo is used")
        draft.put("train.loss_type", "cpo")
        return
    assume_simpo_beta(draft, "beta")
    if alpha is not None:
        draft.carry("cpo_alpha", "train.loss_weights" if weight else "")
    if not weight:
        draft.carry("loss_type", "train.loss_type", "simpo")
        return
    draft.put("train.loss_type", ["simpo", "sft"])
    draft.put("train.loss_weights", [1.0, weight])
    draft.change(
        "loss_type",
        "train.loss_type",
        ["simpo", "sft"],
        "the likelihood of chosen that CPOTrainer adds is the loss sft of the mix",
    )


def _fill_template(draft: Draft) -> None:
    text, file = draft.get("chat_template"), draft.get("chat_template_path")
    if text:
        name = f"{draft.recipe['name']}.jinja"
        # Jinja drops one line end at a template's end.
        draft.files[name] = str(text) if str(text).endswith("\n") else f"{text}\n"
        draft.change(
            "chat_template", "template", name, f"written as {name}; every row is checked against it"
        )
        return
    if not file:
        draft.assume("chat_template", "template", "tokenizer", "isn't there: the model's own")
        return
    place = draft.find(str(file))
    inner = place / "chat_template.jinja" if place is not None and place.is_dir() else place
    path = None if inner is None or not inner.is_file() else draft.path(str(inner))
    if path is None:
        draft.put("template", "tokenizer")
        draft.refuse(
            "chat_template_path",
            f"{file} isn't a .jinja file that is here: save its template as one, and name it in template; "
            "until then the model's own is used",
        )
    else:
        draft.change("chat_template_path", "template", path)
