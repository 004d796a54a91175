"""What can be wrong with a saved model: do its files agree with each other, and with how it was trained?"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.checkpoints.checkpoint import Checkpoint, embedding_name, read_json
from dualign.data.text.template import load_template
from dualign.doctor.findings import Fault
from dualign.errors import CheckpointError, MergeError, TemplateError
from dualign.model_ref import adapter_base
from dualign.models.tokenizer import with_defaults
from dualign.rundir import read_run
from dualign.stages import stage_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A saved directory's JSON files; {} where there is none. `config` is the base's for an adapter."""

    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    adapter: Mapping[str, Any]
    run: Mapping[str, Any]
    base: Path | None
    """the folder with the weights of the base, if it is on this machine"""


def read_saved(folder: Path) -> tuple[Saved, list[Fault]]:
    """The JSON files, and what is wrong with them as files."""
    faults: list[Fault] = []
    adapter = _read(folder / "adapter_config.json", faults)
    base, base_faults = _base(folder, adapter) if adapter else (folder, [])
    config = _read(base / "config.json", faults) if base else {}
    if base and not config and not faults:
        faults.append(Fault("config_unreadable", f"{base / 'config.json'}: no such file"))
    saved = Saved(
        folder=folder,
        config=config,
        generation=_read(folder / "generation_config.json", faults),
        adapter=adapter,
        run=_read_run(folder, faults),
        base=base,
    )
    return saved, faults + base_faults


def directory_faults(saved: Saved, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Fault]:
    """Whether the files agree with the tokenizer, and with what run.json says."""
    yield from _template_faults(saved, tokenizer)
    yield from _end_faults(saved, tokenizer)
    yield from _pad_faults(saved, tokenizer)
    yield from _weight_faults(saved, tokenizer)
    yield from _run_faults(saved.run)


def _read(path: Path, faults: list[Fault]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except CheckpointError as error:
        faults.append(Fault("config_unreadable", str(error)))
        return {}


def _read_run(folder: Path, faults: list[Fault]) -> dict[str, Any]:
    try:
        return read_run(folder)
    except CheckpointError as error:
        faults.append(Fault("config_unreadable", str(error)))
        return {}


def _base(folder: Path, adapter: Mapping[str, Any]) -> tuple[Path | None, list[Fault]]:
    """Where an adapter's base is. Nothing is fetched: a hub id is taken at its word."""
    try:
        base = adapter_base(folder, adapter)
    except CheckpointError as error:
        return None, [Fault("base_not_named", str(error))]
    if base.path is None:
        return None, []
    if base.path.is_dir():
        return base.path, [Fault("base_is_local", f"base_model_name_or_path is {base.text!r}")]
    return None, [Fault("base_not_found", f"base_model_name_or_path is {base.text!r}: not there")]


def _template_faults(saved: Saved, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Fault]:
    file, settings = saved.folder / "chat_template.jinja", saved.folder / "tokenizer_config.json"
    inside = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    if file.is_file() and isinstance(inside, str):
        text = file.read_text(encoding="utf-8")
        if text.strip() != inside.strip():
            yield Fault("two_templates", f"{file.name} and {settings.name} differ")
    trained = saved.run.get("config", {})
    name = trained.get("template")
    if not name or name == "tokenizer" or not tokenizer.chat_template:
        return
    try:
        text = load_template(name, tokenizer=tokenizer).text
    except TemplateError:
        return  # a file of the user's that is no longer there
    kwargs = trained.get("template_kwargs") or {}
    if str(tokenizer.get_chat_template()).strip() != with_defaults(text, kwargs).strip():
        settings_said = f" with {kwargs}" if kwargs else ""
        found = f"run.json says {name!r}{settings_said}; the saved template is another"
        yield Fault("template_not_trained", found)


def _end_faults(saved: Saved, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Fault]:
    """Whether each file that says where to stop says the tokenizer's end."""
    end = tokenizer.eos_token_id
    # An adapter's base keeps its own ends; generation_config.json lies beside the adapter.
    if saved.config and not saved.adapter and end not in _listed(saved.config.get("eos_token_id")):
        found = f"config.json has {saved.config.get('eos_token_id')}, the tokenizer has {end}"
        yield Fault("eos_disagrees", found)
    if not saved.generation:
        yield Fault("no_generation_config", f"{saved.folder}: has no generation_config.json")
    elif end not in _listed(saved.generation.get("eos_token_id")):
        ends = saved.generation.get("eos_token_id")
        found = f"generation_config.json has {ends}, the tokenizer has {end}"
        yield Fault("generation_never_stops", found)


def _pad_faults(saved: Saved, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Fault]:
    said = {"tokenizer": tokenizer.pad_token_id}
    if not saved.adapter:
        said["config.json"] = saved.config.get("pad_token_id")
    said["generation_config.json"] = saved.generation.get("pad_token_id")
    known = {place: pad for place, pad in said.items() if pad is not None}
    if len(set(known.values())) > 1:
        yield Fault("pad_disagrees", ", ".join(f"{place} {pad}" for place, pad in known.items()))


def _weight_faults(saved: Saved, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Fault]:
    if saved.adapter:
        yield from _adapter_weights(saved)
        yield from _adapter_modules(saved)
    if saved.base is None or "quantization_config" in saved.config:
        return
    try:
        entries = Checkpoint(saved.base).entries
    except (CheckpointError, MergeError) as error:
        yield Fault("weights_unreadable", str(error))
        return
    name = embedding_name(entries)
    if name is None:
        return
    rows, said = entries[name].shape[0], saved.config.get("vocab_size")
    if said is not None and rows != said:
        yield Fault("embedding_size", f"{name} has {rows:,} rows, config.json says {said:,}")
    over = [token for token, place in tokenizer.get_vocab().items() if place >= rows]
    if over and not _brings_embedding(saved):
        listed = ", ".join(repr(token) for token in sorted(over)[:5])
        found = f"{len(over):,} tokens beyond the {rows:,} rows of {name}: {listed}"
        yield Fault("tokens_without_embedding", found)


def _adapter_weights(saved: Saved) -> Iterator[Fault]:
    from safetensors import SafetensorError, safe_open

    file = saved.folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError) as error:
        yield Fault("weights_unreadable", f"{file}: {error}")
        return
    if not any("lora_" in name for name in names):
        yield Fault("weights_unreadable", f"{file}: holds no LoRA tensor")


def _adapter_modules(saved: Saved) -> Iterator[Fault]:
    whole = saved.adapter.get("modules_to_save") or []
    targets = saved.adapter.get("target_modules") or []
    named = [*whole, *([targets] if isinstance(targets, str) else targets)]
    ends = sorted({one for one in named if one.endswith(("lm_head", "embed_tokens", "wte"))})
    if ends and saved.config.get("tie_word_embeddings"):
        yield Fault("adapter_splits_tie", f"{', '.join(ends)} of a base with tied embeddings")
    if whole:
        yield Fault("adapter_saves_modules", f"modules_to_save: {', '.join(whole)}")


def _brings_embedding(saved: Saved) -> bool:
    """Whether the adapter has rows for new tokens."""
    kept = [*(saved.adapter.get("modules_to_save") or ())]
    return any("embed" in name for name in kept) or bool(
        saved.adapter.get("trainable_token_indices")
    )


def _run_faults(run: Mapping[str, Any]) -> Iterator[Fault]:
    rows = run.get("rows") or {}
    for part in (rows, *rows.get("by", ())) if rows else ():
        counted = part["kept"] + sum(part["dropped"].values())
        if part["in"] != counted:
            name = f"{part.get('source', 'all')} {part.get('mode', '')}".strip()
            found = f"{name}: {part['in']:,} in, {counted:,} kept or dropped"
            yield Fault("rows_unaccounted", found)
    trained = stage_kind(str(run.get("kind"))).trains
    if trained and "reload_max_logit_difference" not in (run.get("checks") or {}):
        yield Fault("never_reloaded", "run.json has no reload_max_logit_difference")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
