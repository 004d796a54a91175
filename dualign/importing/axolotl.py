"""What rows of axolotl's table can't say: the kind of stage, the model and its template."""

from typing import Any

from dualign.importing.arguments import assume_simpo_beta
from dualign.importing.axolotl_data import base_type, fill_sources, is_text
from dualign.importing.axolotl_launch import fill_launch
from dualign.importing.axolotl_training import (
    fill_adapter,
    fill_packing,
    fill_plugins,
    fill_saving,
    fill_steps,
    fill_tokens,
    fill_trackers,
)
from dualign.importing.draft import Draft, is_off

_LOSSES: dict[str, Any] = {
    "dpo": "sigmoid",
    "ipo": "ipo",
    "kto": "kto",
    "orpo": "orpo",
    "simpo": "simpo",
}
_BETAS = (("trl", "beta"), ("rl_beta",), ("orpo_alpha",))  # the first that is set counts
_ELSEWHERE = {
    "reward_model": "reward models",
    "process_reward_model": "models of the rewards of steps",
}


def fill(draft: Draft) -> None:
    """Write what depends on more than one key."""
    if not draft.get("base_model"):
        draft.problems.append("base_model: isn't there; a recipe needs the model to train")
    _fill_kind(draft)
    fill_sources(draft)
    if draft.problems:
        return
    _fill_model(draft)
    _fill_template(draft)
    fill_adapter(draft)
    fill_packing(draft)
    fill_steps(draft)
    fill_saving(draft)
    fill_trackers(draft)
    fill_tokens(draft)
    fill_plugins(draft)
    fill_launch(draft)


def _fill_kind(draft: Draft) -> None:
    """Say what kind of stage it is, and the loss of a preference stage."""
    for key, what in _ELSEWHERE.items():
        if draft.get(key):
            draft.problems.append(
                f"{key}: dualign trains no {what}; pairs train the model itself (kind: preference)"
            )
    rl = draft.get("rl")
    rl = rl if rl is None or rl is False else str(rl)
    if is_off(rl):
        return
    if rl not in _LOSSES:
        there = ", ".join(_LOSSES)
        draft.problems.append(
            f"rl: {rl}: isn't there (there: {there}): answers aren't sampled while a stage trains; "
            "kind: pairs samples and scores them before it"
        )
        return
    draft.set_kind("preference")
    draft.put("data.packing", "none")
    loss = _LOSSES[rl]
    if rl == "simpo":
        loss = _simpo(draft)
    elif draft.get("cpo_alpha") is not None:
        draft.carry("cpo_alpha", says="has no effect without rl: simpo, in axolotl neither")
    if rl == "simpo" and not any(draft.get(*key) is not None for key in _BETAS):
        assume_simpo_beta(draft, "rl_beta")
    reference = {
        "simpo": "with the likelihood of chosen, as TRL's CPOTrainer adds it to SimPO",
        "orpo": "the likelihood is that of the answer, and TRL's ORPOTrainer counts the prompt too",
    }.get(
        rl,
        "the reference is the start model: the adapter switched off, or without one a frozen copy",
    )
    if rl == "dpo" and draft.get("dpo_loss_type"):
        draft.change("rl", says=reference)
    else:
        draft.change("rl", "train.loss_type", loss, reference)
    betas = [key for key in _BETAS if draft.get(*key) is not None]
    for other in betas[1:]:
        draft.refuse(other, f"{'.'.join(betas[0])} is set too, and axolotl takes that")


def _simpo(draft: Draft) -> Any:
    """Return the loss that TRL's CPOTrainer makes of SimPO: with the likelihood of chosen, unless cpo_alpha is 0."""
    weight = draft.number("cpo_alpha")
    if weight == 0:
        draft.carry("cpo_alpha", says="is 0: the likelihood of chosen isn't in the loss")
        return "simpo"
    draft.put("train.loss_weights", [1.0, 1.0 if weight is None else float(weight)])
    if weight is not None:
        draft.change("cpo_alpha", "train.loss_weights")
    return ["simpo", "sft"]


def _fill_model(draft: Draft) -> None:
    model = str(draft.get("base_model"))
    draft.carry("base_model", "model", draft.path(model) or model)
    if isinstance(draft.get("base_model"), int | float | bool | list | dict):
        draft.put("model", draft.get("base_model"))
    if model.startswith((".", "/", "~")) and draft.find(model) is None:
        draft.refuse("base_model", f"{model}: isn't there (looked in {draft.folder} and here)")
    directory = draft.get("lora_model_dir")
    if directory and draft.get("adapter"):
        path = draft.path(str(directory)) or str(directory)
        draft.change("lora_model_dir", "model", f"{draft.path(model) or model}+{path}")


def _fill_template(draft: Draft) -> None:
    """Choose the template: of the file, of a data set, or of the form that its rows have."""
    lists = [place for place in draft.sources if not is_text(draft, place)]
    own = [(*place, key) for place in lists for key in ("chat_template_jinja", "chat_template")]
    keys = [("chat_template_jinja",), ("chat_template",), *own]
    keys = [key for key in keys if draft.get(*key) and draft.get(*key) != "jinja"]
    if draft.get("chat_template") == "jinja":
        draft.carry("chat_template", says="the template is chat_template_jinja")
    for number, key in enumerate(keys):
        if number and draft.get(*key) != draft.get(*keys[0]):
            draft.refuse(
                key, f"a stage has one template: {draft.get(*keys[0])!r} is taken for all rows"
            )
        elif key[-1] == "chat_template_jinja":
            _own_template(draft, key)
        elif str(draft.get(*key)).startswith("tokenizer_default_fallback_"):
            draft.change(
                key,
                "template",
                "tokenizer",
                "is the model's own template; where it has none, name one",
            )
        else:
            _named_template(draft, key)
    if not keys and lists:
        _template_of_rows(draft, lists)
    elif not lists:
        draft.assume(
            "chat_template",
            "template",
            "chatml",
            "raw text has none; the checkpoint is saved with this one",
        )
    _fill_modes(draft)


def _named_template(draft: Draft, key: tuple[Any, ...]) -> None:
    row = draft.table.row(("chat_template",))
    name = str(draft.get(*key))
    value = row.values.get(name.lower()) if row else None
    if row is None or value is None:
        draft.put("template", "tokenizer")
        draft.refuse(
            key,
            f"{name}: no template of that name is here, so the recipe has the model's own (template: tokenizer); "
            "save axolotl's as a .jinja file and name that to keep it",
        )
    elif isinstance(value, str):
        draft.change(key, "template", value, row.says)
    else:
        draft.change(key, "template", value["changed"], value["says"])


def _own_template(draft: Draft, key: tuple[Any, ...]) -> None:
    """Carry a template over: a .jinja file as it is, other text as a file beside the recipe."""
    text = str(draft.get(*key))
    place = draft.find(text) if len(text) < 200 and "{" not in text else None
    if place is not None and place.suffix == ".jinja":
        draft.carry(key, "template", draft.path(text))
        return
    if place is None and "{" not in text:
        draft.put("template", "tokenizer")
        draft.refuse(key, f"{text}: no such file, so the recipe has the model's own template")
        return
    name = f"{draft.recipe['name']}.jinja"
    try:
        draft.files[name] = text if place is None else place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        draft.problems.append(f"{key[-1]}: {place}: can't be read as text: {error}")
        return
    draft.carry(key, "template", name, "is a file beside the recipe")


def _template_of_rows(draft: Draft, lists: list[tuple[Any, ...]]) -> None:
    """Take the template that the forms of rows name (`chatml.intel`), else the model's own, axolotl's default."""
    row = draft.table.row(("datasets", 0, "type"))
    forms = [base_type(draft.get(*place, "type")).lower() for place in lists]
    named = [
        row.values[form]["template"]
        for form in forms
        if row and "template" in row.values.get(form, {})
    ]
    if named:
        draft.assume(
            "chat_template", "template", named[0], "isn't there: the form of the rows names it"
        )
        return
    says = "isn't there: the model's own template, which is axolotl's default of chat_template rows"
    draft.assume(
        "chat_template",
        "template",
        "tokenizer",
        f"{says}; a model that has none needs one: dualign, chatml",
    )


def _fill_modes(draft: Draft) -> None:
    """Turn a switch of the modes for the whole run into the mode of every source."""
    values = draft.get("chat_template_kwargs")
    if not isinstance(values, dict):
        return
    rest = dict(values)
    for name in ("enable_thinking", "thinking"):
        if isinstance(rest.get(name), bool):
            mode = "think" if rest.pop(name) else "no_think"
            for number, source in enumerate(draft.stage["data"]["sources"]):
                if "text" not in source.get("columns", {}):
                    draft.put(f"data.sources[{number}].mode", mode)
            draft.change(
                "chat_template_kwargs",
                "data.sources[].mode",
                says=f"{name} is the mode of each row: every row is {mode}, and one that contradicts that stops the run "
                "(docs/data.md)",
            )
    if rest:
        draft.carry("chat_template_kwargs", "template_kwargs", rest)
