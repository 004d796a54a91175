"""Checks of a saved model: its files have to agree with each other and with its training."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.checkpoints.checkpoint import Checkpoint, embedding_name, read_json
from dualign.checkpoints.finite import non_finite_tensors
from dualign.checkpoints.token_rows import last_token
from dualign.data.text.installed import PREFIX, installed_text, relatives
from dualign.data.text.system_role import with_fold
from dualign.data.text.template import load_template
from dualign.doctor.findings import Finding
from dualign.errors import CheckpointError, MergeError, TemplateError
from dualign.model_ref import adapter_base
from dualign.models.tokenizer import saved_template, turn_end_ids
from dualign.rundir import read_run
from dualign.stages import stage_kind
from dualign.switch import read_switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedModel:
    """JSON files of a saved model; {} for a missing one. An adapter has its base's `config`."""

    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    adapter: Mapping[str, Any]
    run: Mapping[str, Any]
    base: Path | None
    """folder with the weights (of the base), if it is on this machine"""


def read_saved_model(folder: Path) -> tuple[SavedModel, list[Finding]]:
    """Read the JSON files; return them, and findings for those that can't be read."""
    findings: list[Finding] = []
    adapter = _read(folder / "adapter_config.json", findings)
    base, base_findings = _base(folder, adapter) if adapter else (folder, [])
    config = _read(base / "config.json", findings) if base else {}
    if base and not config and not findings:
        findings.append(Finding("config_unreadable", f"{base / 'config.json'}: no such file"))
    saved = SavedModel(
        folder=folder,
        config=config,
        generation=_read(folder / "generation_config.json", findings),
        adapter=adapter,
        run=_read_run(folder, findings),
        base=base,
    )
    return saved, findings + base_findings


def check_saved_model(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    """Check that the files agree with the tokenizer and with run.json."""
    yield from _check_template(saved, tokenizer)
    yield from _check_eos(saved, tokenizer)
    yield from _check_pad(saved, tokenizer)
    yield from _check_weights(saved, tokenizer)
    yield from _check_run(saved.run)


def check_tensors(folder: Path) -> Iterator[Finding]:
    """Read every number of the safetensors files in a folder."""
    try:
        counts = non_finite_tensors(folder)
    except CheckpointError as error:
        yield Finding("weights_unreadable", str(error))
        return
    for name, count in counts.items():
        yield Finding("weights_not_finite", f"{name} holds {count:,} NaN or infinite values")


def _read(path: Path, findings: list[Finding]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except CheckpointError as error:
        findings.append(Finding("config_unreadable", str(error)))
        return {}


def _read_run(folder: Path, findings: list[Finding]) -> dict[str, Any]:
    try:
        return read_run(folder)
    except CheckpointError as error:
        findings.append(Finding("config_unreadable", str(error)))
        return {}


def _base(folder: Path, adapter: Mapping[str, Any]) -> tuple[Path | None, list[Finding]]:
    """Find the folder of an adapter's base; None for a hub id, which isn't downloaded."""
    try:
        base = adapter_base(folder, adapter)
    except CheckpointError as error:
        return None, [Finding("base_not_named", str(error))]
    if base.path is None:
        return None, []
    if base.path.is_dir():
        return base.path, [Finding("base_is_local", f"base_model_name_or_path is {base.text!r}")]
    return None, [Finding("base_not_found", f"base_model_name_or_path is {base.text!r}: not there")]


def _check_template(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    file, settings = saved.folder / "chat_template.jinja", saved.folder / "tokenizer_config.json"
    embedded = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    if file.is_file() and isinstance(embedded, str):
        text = file.read_text(encoding="utf-8")
        if text.strip() != embedded.strip():
            yield Finding("two_templates", f"{file.name} and {settings.name} differ")
    trained = saved.run.get("config", {})
    name = trained.get("template")
    if not name or name == "tokenizer" or not tokenizer.chat_template:
        return
    try:
        template = load_template(name, tokenizer=tokenizer)
    except TemplateError:
        return  # the user's file no longer exists
    kwargs = trained.get("template_kwargs") or {}
    named = read_switch(trained.get("switch"), "run.json")
    switch = None if named == template.switch else named
    # A model keeps its own template where another one of its family asks alike.
    named_here = name.startswith(PREFIX)
    family = [installed_text(other) for other in relatives(template.text)] if named_here else []
    texts = [
        saved_template(text, kwargs, switch).strip()
        for text in (template.text, with_fold(template.text), *family)
    ]
    if str(tokenizer.get_chat_template()).strip() not in texts:
        settings_text = f" with {kwargs}" if kwargs else ""
        message = f"run.json says {name!r}{settings_text}; the saved template is another"
        yield Finding("template_not_trained", message)


def _check_eos(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    """Check that each file with an eos_token_id has the tokenizer's."""
    end = tokenizer.eos_token_id
    # An adapter's base keeps its own eos ids; generation_config.json is in the adapter's folder.
    if saved.config and not saved.adapter and end not in _listed(saved.config.get("eos_token_id")):
        message = f"config.json has {saved.config.get('eos_token_id')}, the tokenizer has {end}"
        yield Finding("eos_disagrees", message)
    if not saved.generation:
        yield Finding("no_generation_config", f"{saved.folder}: has no generation_config.json")
        return
    ends = saved.generation.get("eos_token_id")
    missing = [each for each in _turn_ends(tokenizer) if each not in _listed(ends)]
    if missing:
        message = f"generation_config.json has {ends}, and turns end with {missing}"
        yield Finding("generation_never_stops", message)


def _turn_ends(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that end turns: eos, and those that the template writes."""
    try:
        ends = turn_end_ids(tokenizer)
    except TemplateError:  # which is a finding of its own
        ends = []
    return list(dict.fromkeys([tokenizer.eos_token_id, *ends]))


def _check_pad(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    pads = {"tokenizer": tokenizer.pad_token_id}
    if not saved.adapter:
        pads["config.json"] = saved.config.get("pad_token_id")
    pads["generation_config.json"] = saved.generation.get("pad_token_id")
    pads = {file: pad for file, pad in pads.items() if pad is not None}
    if len(set(pads.values())) > 1:
        yield Finding("pad_disagrees", ", ".join(f"{file} {pad}" for file, pad in pads.items()))


def _check_weights(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    if saved.adapter:
        yield from _check_adapter_weights(saved)
        yield from _check_adapter_modules(saved)
    if saved.base is None or "quantization_config" in saved.config:
        return
    try:
        entries = Checkpoint(saved.base).entries
    except (CheckpointError, MergeError) as error:
        yield Finding("weights_unreadable", str(error))
        return
    name = embedding_name(entries)
    if name is None:
        return
    rows, vocab_size = entries[name].shape[0], saved.config.get("vocab_size")
    if vocab_size is not None and rows != vocab_size:
        message = f"{name} has {rows:,} rows, config.json says {vocab_size:,}"
        yield Finding("embedding_size", message)
    beyond = [token for token, index in tokenizer.get_vocab().items() if index >= rows]
    if beyond and not _trains_embedding(saved):
        listed = ", ".join(repr(token) for token in sorted(beyond)[:5])
        message = f"{len(beyond):,} tokens beyond the {rows:,} rows of {name}: {listed}"
        yield Finding("tokens_without_embedding", message)


def _check_adapter_weights(saved: SavedModel) -> Iterator[Finding]:
    from safetensors import SafetensorError, safe_open

    file = saved.folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
    except (OSError, SafetensorError) as error:
        yield Finding("weights_unreadable", f"{file}: {error}")
        return
    if not any("lora_" in name for name in names):
        yield Finding("weights_unreadable", f"{file}: holds no LoRA tensor")


def _check_adapter_modules(saved: SavedModel) -> Iterator[Finding]:
    whole = saved.adapter.get("modules_to_save") or []
    targets = saved.adapter.get("target_modules") or []
    named = [*whole, *([targets] if isinstance(targets, str) else targets)]
    tied = sorted({name for name in named if name.endswith(("lm_head", "embed_tokens", "wte"))})
    split = tied and not saved.adapter.get("ensure_weight_tying")
    if split and saved.config.get("tie_word_embeddings"):
        yield Finding("adapter_splits_tie", f"{', '.join(tied)} of a base with tied embeddings")
    if (last := last_token(saved.adapter)) >= 0:
        yield Finding("adapter_trains_tokens", f"rows of tokens up to {last}")
    if whole:
        yield Finding("adapter_saves_modules", f"modules_to_save: {', '.join(whole)}")


def _trains_embedding(saved: SavedModel) -> bool:
    """Return whether the adapter has embedding rows of its own."""
    modules = saved.adapter.get("modules_to_save") or ()
    return any("embed" in name for name in modules) or bool(
        saved.adapter.get("trainable_token_indices")
    )


def _check_run(run: Mapping[str, Any]) -> Iterator[Finding]:
    rows = run.get("rows") or {}
    for part in (rows, *rows.get("by", ())) if rows else ():
        counted = part["kept"] + sum(part["dropped"].values())
        if part["in"] != counted:
            name = f"{part.get('source', 'all')} {part.get('mode', '')}".strip()
            message = f"{name}: {part['in']:,} in, {counted:,} kept or dropped"
            yield Finding("rows_unaccounted", message)
    trained = stage_kind(str(run.get("kind"))).trains
    if trained and "reload_max_logit_difference" not in (run.get("checks") or {}):
        yield Finding("never_reloaded", "run.json has no reload_max_logit_difference")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
